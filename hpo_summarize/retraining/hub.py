"""The final model on the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from hpo_summarize.errors import HpoError, ModelError


def make_repository(name: str) -> None:
    """Makes a private repository for a model, if there is none of that name.

    Called before the training, so that a missing token does not come to light after it.

    Raises:
        ModelError: The Hub refuses, or cannot be reached.
    """
    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
        # For one that exists the line above is content with the right to read it.
        HfApi().auth_check(name, write=True)
    except Exception as error:  # requests' and the Hub's own errors.
        raise ModelError(
            f"train.push_to_hub: the Hub does not let '{name}' be written ({_reason(error)}); put "
            "a token with the right to write into HF_TOKEN, or set push_to_hub to null"
        ) from None


def upload(folder: Path, name: str) -> str:
    """Uploads the files of a model as one commit, and returns its address.

    Raises:
        HpoError: It did not work; the folder is still there.
    """
    try:
        commit = HfApi().upload_folder(
            repo_id=name, folder_path=folder, commit_message="Add the model and its scores"
        )
    except Exception as error:
        raise HpoError(
            f"the model is in {folder}, but was not uploaded to '{name}' ({_reason(error)}); "
            f"the same command tries only that again, as does: hf upload {name} {folder}"
        ) from None
    return commit.commit_url


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")

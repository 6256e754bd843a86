"""NEFTune noise for encoder-decoder models (Jain et al. 2023, arXiv:2310.05914)."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.trainer_utils import unwrap_peft_model


class EncoderNoise(TrainerCallback):
    """Puts the noise on the embeddings that the encoder reads.

    transformers 5.23 puts it on `get_input_embeddings()`, whose weights encoder and decoder share
    in modules of their own: nothing calls that one, and the noise never acts.
    """

    def __init__(self) -> None:
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins with the noise of `args.neftune_noise_alpha`, if there is one."""
        self._remove()  # A training that was cut off has left its own.
        model = unwrap_peft_model(kwargs["model"])
        if args.neftune_noise_alpha is None or not model.config.is_encoder_decoder:
            return
        embeddings = model.get_encoder().get_input_embeddings()
        if embeddings is not model.get_input_embeddings():
            embeddings.neftune_noise_alpha = args.neftune_noise_alpha
            self._hook = embeddings.register_forward_hook(neftune_post_forward_hook)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends it."""
        self._remove()

    def _remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

"""What stands beside the weights of a final model: its scores as JSON, and its model card."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpo_summarize import __version__
from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import dump_recipe
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import Problem, RecipeError
from hpo_summarize.final_model.export import adapter_usage
from hpo_summarize.final_model.train import Trained, of_trial, spread
from hpo_summarize.generation import count_in_words, degenerate_note
from hpo_summarize.io import write_text
from hpo_summarize.summarizer import SEED
from hpo_summarize.training.arguments import eval_batch_size

SCORES = "scores.json"
FILES = "files"  # In there: what is replaced by the next training, and nothing else is.
_PACKAGES = ("transformers", "torch", "peft", "optuna", "datasets", "rouge-score")


def write_card(
    best: Trained, trained: Sequence[Trained], experiment: Experiment, sizes: Mapping[str, int]
) -> None:
    """Writes `scores.json` and `README.md` into the folder of a model.

    Args:
        best: The training that is kept.
        trained: All trainings, the kept one among them.
        experiment: The experiment, for the recipe and the ROUGE tokenizer that was used.
        sizes: Dialogues by split.
    """
    content = describe(best, trained, experiment, sizes)
    content[FILES] = sorted({*files_in(best.folder), SCORES, "README.md"})
    write_text(best.folder / SCORES, f"{json.dumps(content, ensure_ascii=False, indent=2)}\n")
    card = _card(content, experiment.recipe, best.folder, adapter_usage(experiment, best.folder))
    write_text(best.folder / "README.md", card)


def files_in(folder: Path) -> set[str]:
    """The files of a folder and of those below it, each by its path from there."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def check_replaceable(folder: Path) -> None:
    """Refuses to replace a model's folder in which `write_card` does not list every file.

    Raises:
        RecipeError: There is a file that is not listed.
    """
    try:
        known = json.loads((folder / SCORES).read_text(encoding="utf-8"))[FILES]
    except (OSError, ValueError, TypeError, KeyError):
        known = []
    if foreign := sorted(files_in(folder) - set(known)) or (folder.is_file() and [folder.name]):
        message = (
            f"the final model replaces {folder}, which holds {foreign[0]}, and {SCORES} there does "
            "not list that as written by a training (one of an earlier version lists nothing); "
            "move it, or choose another output_dir"
        )
        raise RecipeError([Problem("output_dir", message)])


def describe(
    best: Trained, trained: Sequence[Trained], experiment: Experiment, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The content of `scores.json`."""
    recipe, candidate = experiment.recipe, best.training.candidate
    runs = of_trial(trained, candidate.number)
    return {
        "scores": best.scores,
        # Without examples: the folder may be published, and the texts may be private.
        "summaries": {
            split: {key: value for key, value in found.items() if key != "examples"}
            for split, found in best.summaries.items()
        },
        "rouge_tokenizer": experiment.rouge.tokenizer_name,
        "rouge_references": recipe.rouge.references,
        "study_name": candidate.study_name,
        "trial": candidate.number,
        "params": candidate.params,
        "epochs": candidate.epoch,
        "schedule_epochs": candidate.n_epochs(recipe),
        "seed": best.training.seed,
        "seeds": spread(runs) if len(runs) > 1 else None,
        "trainings": [
            {
                "trial": one.training.candidate.number,
                "seed": one.training.seed,
                "scores": one.scores,
            }
            for one in trained
        ],
        "n_dialogues": dict(sizes),
        "trained_on_validation": recipe.train.use_validation,
        "max_dialogue_tokens": recipe.data.max_dialogue_tokens,
        "batch_size": eval_batch_size(recipe),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in _PACKAGES}
    return {"hpo_summarize": __version__, "python": platform.python_version(), **found}


def _base_model(recipe: Recipe) -> str | None:
    """The id of the pretrained model on the Hub; a folder of this machine says nothing there."""
    name = recipe.model.name
    return None if name is None or Path(name).expanduser().is_dir() else name


def _card(content: Mapping[str, Any], recipe: Recipe, folder: Path, adapter: str) -> str:
    """The model card as Markdown."""
    decoding = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    sampled = f", and `torch.manual_seed({SEED})` before each" if decoding.get("do_sample") else ""
    base = _base_model(recipe)
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: summarization",
        *([f"base_model: {base}"] if base else ()),
        "tags: [dialogue-summarization]\n---\n\n# Dialogue summariser\n",
        f"Trained with the values of trial {content['trial']} of the study "
        f"`{content['study_name']}`: {content['epochs']:g} of the {content['schedule_epochs']:g} "
        f"epochs that its learning rate schedule is made for, seed {content['seed']}.\n",
        _USAGE,
        f"Dialogues are cut at {content['max_dialogue_tokens']} tokens. The scores were measured "
        f"with batches of {content['batch_size']} dialogues in their order{sampled}.\n",
        *([adapter] if adapter else ()),
        "## Scores\n",
        *_scores_in_words(content),
        *_summaries_in_words(content["summaries"]),
        "## Data\n",
        _table(("split", "dialogues"), content["n_dialogues"].items()),
    ]
    if content["trained_on_validation"]:
        parts.append("The validation split was trained on, too.\n")
    parts += [
        "## Hyperparameters\n",
        _table(("name", "value"), content["params"].items()),
        "Decoding, as in `generation_config.json`:\n",
        _table(("name", "value"), ((k, v) for k, v in decoding.items() if not k.startswith("_"))),
        f"## Recipe\n\n```yaml\n{dump_recipe(recipe, published=True).rstrip()}\n```\n",
        "## Versions\n",
        _table(("package", "version"), content["versions"].items()),
    ]
    return "\n".join(parts)


_USAGE = """\
```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "."  # Or the name of this repository.
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer([dialogue], truncation=True, padding=True, return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0].strip())
```
"""


def _scores_in_words(content: Mapping[str, Any]) -> Iterator[str]:
    scores, seeds = content["scores"], content["seeds"]
    if not scores:
        yield "Not measured: no test split has summaries, and validation was trained on.\n"
        return
    measures = list(next(iter(scores.values())))
    tokenizer, over = content["rouge_tokenizer"], content["rouge_references"]
    counted = f'hpo_summarize.rouge.Rouge(tokenizer="{tokenizer}", references="{over}")'
    own = ", as rouge-score without stemming" if tokenizer == "default" else ""
    yield (
        f"ROUGE F1 (0 to 1), in lower case, by `{counted}`{own}; of several references to a "
        f"dialogue the {over} counts.\n"
    )
    rows = [
        (split, content["n_dialogues"][split], *(f"{values[name]:.4f}" for name in measures))
        for split, values in scores.items()
    ]
    yield _table(("split", "dialogues", *measures), rows)
    if seeds:
        yield "Mean and standard deviation over the seeds; the best one on validation is kept.\n"
        spreads = [
            (split, *(f"{s[name]['mean']:.4f} ± {s[name]['deviation']:.4f}" for name in measures))
            for split, s in seeds.items()
        ]
        yield _table(("split", *measures), spreads)


def _summaries_in_words(summaries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Counts only: the texts themselves may be private."""
    for split, description in summaries.items():
        note = degenerate_note(description)
        warning = f" **Note: {note}.**" if note else ""
        yield f"Summaries of the {split} split: {count_in_words(description)}.{warning}\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)

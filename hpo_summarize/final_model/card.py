"""What is written beside the weights of a final model: its scores as JSON, and its model card."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hpo_summarize import __version__
from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import dump_recipe, last_part
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import Problem, RecipeError
from hpo_summarize.final_model.export import ADAPTER, changes_of_base
from hpo_summarize.final_model.train import Trained, of_trial, spread
from hpo_summarize.generation import count_in_words, degenerate_note
from hpo_summarize.io import write_text
from hpo_summarize.summarizer import SEED
from hpo_summarize.training.arguments import eval_batch_size

SCORES, CARD = "scores.json", "README.md"
FILES = "files"  # Its key for the files that the next training may replace.
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
    content[FILES] = sorted({*files_in(best.folder), SCORES, CARD})
    write_text(best.folder / SCORES, f"{json.dumps(content, ensure_ascii=False, indent=2)}\n")
    build_card(content, experiment, best.folder).save(best.folder / CARD)


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
    packages = {name: version(name) for name in _PACKAGES}
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
        "versions": {
            "hpo_summarize": __version__,
            "python": platform.python_version(),
            **packages,
        },
    }


def build_card(content: Mapping[str, Any], experiment: Experiment, folder: Path) -> ModelCard:
    """The model card of a final model.

    Args:
        content: From `describe`.
        experiment: Names the base of the adapter, where there is one.
        folder: Folder of the model.
    """
    recipe = experiment.recipe
    decoding = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    return ModelCard.from_template(
        _card_data(content, recipe),
        template_str=_TEMPLATE,
        **content,
        adapter=_adapter(experiment, folder) if (folder / ADAPTER).is_dir() else None,
        sampling_seed=SEED if decoding.get("do_sample") else None,
        summaries_in_words={
            split: (count_in_words(found), degenerate_note(found))
            for split, found in content["summaries"].items()
        },
        decoding={key: value for key, value in decoding.items() if not key.startswith("_")},
        recipe=dump_recipe(recipe, published=True).rstrip(),
    )


def _adapter(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """What the adapter fits on, and the arguments with which that is loaded and changed."""
    model, changes = experiment.recipe.model, changes_of_base(experiment, folder)
    revision = f", revision={json.dumps(model.revision)}" if model.revision else ""
    depth = ", ".join(f"{key}={n}" for key, n in changes.items() if key != "vocab_size")
    base = last_part(model.name)
    return {"base": base, "place": json.dumps(base) + revision, "changes": changes, "depth": depth}


def _card_data(content: Mapping[str, Any], recipe: Recipe) -> ModelCardData:
    """The metadata, which the Hub shows and searches; paths of this machine are no part of it."""
    base, data = recipe.model.name, recipe.data.name
    base = None if base is None or Path(base).expanduser().is_dir() else base
    data = None if data is None or Path(data).expanduser().is_dir() else data
    results = [
        EvalResult(
            task_type="summarization",
            dataset_type=data or "dialogues",
            dataset_name=data or "dialogues",
            dataset_split=split,
            metric_type="rouge",
            metric_name=name,
            metric_value=value,
        )
        for split, measures in content["scores"].items()
        for name, value in measures.items()
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="summarization",
        base_model=base,
        datasets=data,
        metrics=["rouge"],
        tags=["dialogue-summarization"],
        model_name=content["study_name"],
        eval_results=results or None,
    )


_TEMPLATE = """\
---
{{ card_data }}
---
{% macro table(header, rows) -%}
| {{ header | join(" | ") }} |
|{{ " --- |" * header | length }}
{%- for row in rows %}
| {{ row | join(" | ") }} |
{%- endfor %}
{%- endmacro %}
# Dialogue summariser

Trained with the values of trial {{ trial }} of the study `{{ study_name }}`: \
{{ "%g" % epochs }} of the {{ "%g" % schedule_epochs }} epochs of its learning rate schedule, \
seed {{ seed }}.

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "."  # Or the name of this repository.
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer([dialogue], truncation=True, padding=True, return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0].strip())
```

Dialogues are cut at {{ max_dialogue_tokens }} tokens. The scores were measured with batches of \
{{ batch_size }} dialogues in their order\
{% if sampling_seed %}, and `torch.manual_seed({{ sampling_seed }})` before each{% endif %}.
{% if adapter %}
The LoRA adapter in `adapter/`, which is merged into the weights above, fits on \
`{{ adapter.base }}`\
{% for name, number in adapter.changes.items() %}\
{{ " with" if loop.first else " and" }} `{{ name }}` {{ number }}\
{% endfor %}, and on nothing else:

```python
from peft import PeftModel
from transformers import GenerationConfig
{%- if adapter.depth %}
from hpo_summarize.models.depth import with_depth
{%- endif %}

base = AutoModelForSeq2SeqLM.from_pretrained({{ adapter.place }})
{%- if adapter.changes.vocab_size %}
base.resize_token_embeddings({{ adapter.changes.vocab_size }})
{%- endif %}
{%- if adapter.depth %}
base = with_depth(base, {{ adapter.depth }})
{%- endif %}
base.generation_config = GenerationConfig.from_pretrained(folder)
model = PeftModel.from_pretrained(base, f"{folder}/adapter")
```
{% endif %}
## Scores
{% if scores %}
ROUGE F1 (0 to 1), in lower case, by \
`hpo_summarize.rouge.Rouge(tokenizer="{{ rouge_tokenizer }}", references="{{ rouge_references }}")`\
{{ ", as rouge-score without stemming" if rouge_tokenizer == "default" }}; \
of several references to a dialogue the {{ rouge_references }} counts.

| split | dialogues | {{ (scores.values() | first).keys() | join(" | ") }} |
| --- | --- |{{ " --- |" * (scores.values() | first) | length }}
{%- for split, measures in scores.items() %}
| {{ split }} | {{ n_dialogues[split] }} |\
{% for value in measures.values() %} {{ "%.4f" % value }} |{% endfor %}
{%- endfor %}
{% if seeds %}
Mean and standard deviation over the seeds; the best one on validation is kept.

| split | {{ (scores.values() | first).keys() | join(" | ") }} |
| --- |{{ " --- |" * (scores.values() | first) | length }}
{%- for split, measures in seeds.items() %}
| {{ split }} |\
{% for one in measures.values() %} {{ "%.4f ± %.4f" % (one.mean, one.deviation) }} |{% endfor %}
{%- endfor %}
{% endif %}
{%- for split, (counts, note) in summaries_in_words.items() %}
Summaries of the {{ split }} split: {{ counts }}.{{ " **Note: %s.**" % note if note }}
{% endfor %}
{%- else %}
Not measured: no test split has summaries, and validation was trained on.
{% endif %}
## Data

{{ table(["split", "dialogues"], n_dialogues.items()) }}
{% if trained_on_validation %}
The validation split was trained on, too.
{% endif %}
## Hyperparameters

{{ table(["name", "value"], params.items()) }}

Decoding, as in `generation_config.json`:

{{ table(["name", "value"], decoding.items()) }}

## Recipe

```yaml
{{ recipe }}
```

## Versions

{{ table(["package", "version"], versions.items()) }}

"""

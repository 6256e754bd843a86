"""Does the quick start keep its word? Run by CI on the output folder of a finished quick start.

    python tests/check_quickstart.py OUTPUT_DIR

The best trial must beat trial 0 by a fifth, and, on validation and test, the best constant summary
and the first utterance taken as the summary.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from hpo_summarize.config.loader import load_recipe
from hpo_summarize.config.parameters import split_by_owner
from hpo_summarize.config.schema import Recipe
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.data.splits import read_dialogues
from hpo_summarize.models.factory import build_model
from hpo_summarize.models.tokenizer import load_tokenizer
from hpo_summarize.rouge import Rouge
from hpo_summarize.search_space import TrialSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from benchmarking.winners import best_constant  # noqa: E402

GAIN = 1.2


def main(folder: Path) -> None:
    """Prints the scores and fails if one of the promises does not hold."""
    recipe = load_recipe(folder / "recipe.yaml")
    best = json.loads((folder / "best_params.json").read_text())
    trial_0 = pd.read_csv(folder / "all_trials.csv")["value"][0]
    print(f"validation: trial 0 {trial_0:.4f}, best {best['best_value']:.4f}")
    assert best["best_value"] >= GAIN * trial_0
    train = read_dialogues(Path(str(recipe.data.train)), recipe.data)
    known = [[text for row in train.references for text in row]]
    for name in ("validation", "test"):
        split = read_dialogues(Path(str(getattr(recipe.data, name))), recipe.data)
        scores = {
            "best trial": score(split, summarise(folder, recipe, best, split)),
            "constant summary": best_constant(Rouge(), "rougeL", split.references, known).score,
            "first utterance": score(split, [first_utterance(d) for d in split.dialogues]),
        }
        print(name, {key: round(value, 4) for key, value in scores.items()})
        assert scores["best trial"] == max(scores.values())


def score(split: Dialogues, summaries: list[str]) -> float:
    """Mean ROUGE-L F1."""
    return Rouge().compute(predictions=summaries, references=split.references)["rougeL"]


def first_utterance(dialogue: str) -> str:
    """The first turn without its speaker."""
    return dialogue.splitlines()[0].partition(":")[2].strip()


def summarise(folder: Path, recipe: Recipe, best: dict, split: Dialogues) -> list[str]:
    """Summaries of the best trial's kept weights."""
    tokenizer = load_tokenizer(recipe.model, recipe.data.special_tokens)
    model = build_model(recipe, tokenizer, TrialSpec.of(best["best_params"]))
    trial = folder / "trials" / best["study_name"] / f"trial-{best['best_trial_number']}"
    (weights,) = trial.glob("checkpoint-*/adapter_model.safetensors")
    set_peft_model_state_dict(model, load_file(weights))
    decoding = split_by_owner(best["best_params"])["generation"]
    inputs = tokenizer(split.dialogues, padding=True, return_tensors="pt")
    with torch.no_grad():
        ids = model.eval().generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **decoding
        )
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))

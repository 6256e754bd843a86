"""What scripts/predict.py prints before and after its work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import PartialState

from hpo_summarize.decoding import summaries_in_words
from hpo_summarize.prediction.predict import Prediction


def print_plan(prediction: Prediction, notes: Sequence[str]) -> None:
    """Prints the model, its decoding and what is known of the data."""
    if not PartialState().is_main_process:
        return
    summarizer = prediction.summarizer
    print(f"model    {prediction.folder}")
    print(f"decoding {summarizer.describe_decoding()}")
    print(f"input    dialogues are cut at {summarizer.max_dialogue_tokens} tokens")
    for note in notes:
        print(f"note     {note}")


def print_result(prediction: Prediction, scores: dict[str, Any] | None) -> None:
    """Prints the scores, where there are any, and where the summaries are."""
    if not PartialState().is_main_process:
        return
    if scores is not None:
        measures = {name: value for name, value in scores.items() if isinstance(value, float)}
        text = "  ".join(f"{name} {value:.4f}" for name, value in measures.items())
        print(f"scores   {text}, on {scores['n_rows']} rows with references")
        print(f"         in lower case, cut into tokens by '{scores['rouge_tokenizer']}'")
    for line in summaries_in_words(prediction.description):
        print(line)
    print(f"summaries in {prediction.output}")

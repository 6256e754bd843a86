"""The result files of a study: `best_params.json`, `all_trials.csv` and `study_stats.json`."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from hpo_summarize.io import write_text
from hpo_summarize.redact import redact_url
from hpo_summarize.reporting.outcome import (
    Outcome,
    Status,
    best_epoch_of,
    failure_of,
    read_study,
    status_of,
    summaries_of,
    trained_trial_of,
)
from hpo_summarize.study.trials import seconds_of, values_of

DECODING_FOLDER = "decoding"  # The pages of a staged search's second stage.

# A spreadsheet takes a cell that begins like this for a formula (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_results(
    study: optuna.Study,
    output_dir: Path,
    decoding: optuna.Study | None = None,
) -> None:
    """Writes the three result files; cheap enough to be called after every trial.

    With a decoding stage there is a fourth one, `decoding_trials.csv`; what is best is best there.

    A reader never sees half a file. For one study the content is always the same, but for the
    fields that hold times.

    Args:
        study: One objective or several.
        output_dir: Folder for the files; made if there is none.
        decoding: The second stage of a staged search.
    """
    outcome = read_study(study)
    second = None if decoding is None else read_study(decoding)
    _write_json(output_dir / "best_params.json", describe_best(outcome, second))
    _write_json(output_dir / "study_stats.json", describe_study(outcome, second))
    write_text(output_dir / "all_trials.csv", list_trials(outcome))
    if second is not None:
        write_text(output_dir / "decoding_trials.csv", list_trials(second))


def final_stage(outcome: Outcome, decoding: Outcome | None) -> Outcome:
    """The stage that decides what is best: the decoding stage as soon as it has a result."""
    return decoding if decoding is not None and decoding.best else outcome


def describe_best(outcome: Outcome, decoding: Outcome | None = None) -> dict[str, Any]:
    """The content of `best_params.json`: the best trial, or the Pareto front.

    Args:
        outcome: The study; in a staged search its first stage, whose trials hold the weights.
        decoding: The second stage of a staged search.
    """
    final = final_stage(outcome, decoding)
    content = _describe_front(final) if final.several else _describe_single(final)
    content |= {"n_trials": outcome.n_finished, "study_name": outcome.name}
    if decoding is not None:
        content |= {"n_decoding_trials": decoding.n_finished}
    if outcome.max_new_tokens is not None:
        content["max_new_tokens"] = outcome.max_new_tokens
    message = outcome.why_no_result()
    return {**content, "message": message} if message else content


def _describe_single(outcome: Outcome) -> dict[str, Any]:
    best = outcome.best[0] if outcome.best else None
    return {
        "best_params": values_of(best) if best else None,
        "best_value": best.value if best else None,
        "best_trial_number": trained_trial_of(best) if best else None,
        "best_epoch": best_epoch_of(best) if best else None,
        "objective": outcome.objectives[0],
        "direction": outcome.directions[0],
        **(_summaries_entry(best) if best else {}),
    }


def _describe_front(outcome: Outcome) -> dict[str, Any]:
    front = [
        {
            "number": trained_trial_of(trial),
            "values": dict(zip(outcome.objectives, trial.values, strict=True)),
            "params": values_of(trial),
            "epoch": best_epoch_of(trial),
            **_summaries_entry(trial),
        }
        for trial in outcome.best
    ]
    return {
        "pareto_front": front,
        "objectives": outcome.objectives,
        "directions": outcome.directions,
    }


def _summaries_entry(trial: FrozenTrial) -> dict[str, Any]:
    found = summaries_of(trial)
    return {} if found is None else {"summaries": found}


def describe_study(outcome: Outcome, decoding: Outcome | None = None) -> dict[str, Any]:
    """The content of `study_stats.json`: counts, best value, failures and times.

    Args:
        outcome: The study.
        decoding: The second stage of a staged search; described under a key of its own.
    """
    second = {} if decoding is None else {"decoding": describe_study(decoding)}
    counts, ended = outcome.counts, [t for t in outcome.trials if t.duration is not None]
    return {
        "study_name": outcome.name,
        "n_trials": outcome.n_finished,
        "n_completed": counts[Status.COMPLETE],
        "n_pruned": counts[Status.PRUNED],
        "n_failed": counts[Status.FAIL],
        "n_interrupted": counts[Status.INTERRUPTED],
        "n_running": counts[Status.RUNNING],
        "n_waiting": counts[Status.WAITING],
        **_best_in_short(final_stage(outcome, decoding)),
        "failures": outcome.failures,
        **({"warm_start": outcome.warm_start} if outcome.warm_start else {}),
        "total_seconds": sum(seconds_of(trial) or 0.0 for trial in ended),
        "first_start": min((t.datetime_start for t in ended if t.datetime_start), default=None),
        "last_complete": max(
            (t.datetime_complete for t in ended if t.datetime_complete), default=None
        ),
        **second,
    }


def _best_in_short(outcome: Outcome) -> dict[str, Any]:
    names, directions, best = outcome.objectives, outcome.directions, outcome.best
    if not outcome.several:
        return {
            "best_value": best[0].value if best else None,
            "best_trial_number": trained_trial_of(best[0]) if best else None,
            "objective": names[0],
            "direction": directions[0],
        }
    columns = [[trial.values[index] for trial in best] for index in range(len(names))]
    tops = [
        (max if direction == "maximize" else min)(column, default=None)
        for direction, column in zip(directions, columns, strict=True)
    ]
    return {
        "best_values": dict(zip(names, tops, strict=True)),
        "pareto_front": [trained_trial_of(trial) for trial in best],
        "objectives": names,
        "directions": directions,
    }


def list_trials(outcome: Outcome) -> str:
    """The content of `all_trials.csv`: one row for each trial, whatever its status.

    Columns: number, state, value (with several objectives `value_<name>` each; only complete
    trials have one), datetime_start, datetime_complete, duration_seconds, `params_<name>` by
    name, best_epoch, failure, `epoch_<step>` by step; in a decoding stage trained_trial in their
    place. The state of a failed trial that Optuna calls pruned is FAIL, and INTERRUPTED that of
    one that was cut off.
    """
    rows = [_row(outcome, trial) for trial in outcome.trials]
    params = {f"params_{name}" for trial in outcome.trials for name in values_of(trial)}
    steps = {step for trial in outcome.trials for step in trial.intermediate_values}
    epochs = [] if outcome.is_decoding else [f"epoch_{step}" for step in sorted(steps)]
    columns = [
        *("number", "state", *_value_columns(outcome)),
        *("datetime_start", "datetime_complete", "duration_seconds", *sorted(params)),
        *("best_epoch", "failure", *(["trained_trial"] if outcome.is_decoding else epochs)),
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in columns])
    writer.writerows([_cell(row.get(name, "")) for name in columns] for row in rows)
    return text.getvalue()


def _value_columns(outcome: Outcome) -> list[str]:
    return [f"value_{name}" for name in outcome.objectives] if outcome.several else ["value"]


def _row(outcome: Outcome, trial: FrozenTrial) -> dict[str, Any]:
    """The cells of a trial by column, without those that are empty."""
    status = status_of(trial)
    values = trial.values if status is Status.COMPLETE else []
    known = {
        "datetime_start": trial.datetime_start,
        "datetime_complete": trial.datetime_complete,
        "duration_seconds": seconds_of(trial),
        "best_epoch": best_epoch_of(trial),
        "failure": failure_of(trial),
    }
    return {
        "number": trial.number,
        "state": status.value,
        **dict(zip(_value_columns(outcome), values, strict=False)),
        **{name: value for name, value in known.items() if value is not None},
        **{f"params_{name}": value for name, value in values_of(trial).items()},
        **{f"epoch_{step}": value for step, value in trial.intermediate_values.items()},
        "trained_trial": trained_trial_of(trial),
    }


def _cell(value: Any) -> Any:
    """One cell: numbers exactly, text never as a formula, what is neither as JSON."""
    value = _plain(value, keep_nonfinite=True)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return "None" if value is None else value


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(_plain(content), ensure_ascii=False, indent=2, allow_nan=False)
    write_text(path, f"{text}\n")


def _plain(value: Any, keep_nonfinite: bool = False) -> Any:
    """A value in JSON's types: passwords hidden, and null for a number that is not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if keep_nonfinite or math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    if isinstance(value, Mapping):
        return {redact_url(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return redact_url(str(value))

"""From the records of single runs to figures over the seeds; nothing is run here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

Record = Mapping[str, Any]
NEVER = math.inf


def curve(record: Record, clock: str, maximize: bool = True) -> list[tuple[float, float]]:
    """The best value so far: `(seconds, value)` at the end of each trial that improved it.

    Args:
        record: Record of a run.
        clock: `"wall"` or `"cpu"`.
        maximize: The direction.
    """
    done = [trial for trial in record["trials"] if trial["value"] is not None]
    points: list[tuple[float, float]] = []
    for trial in sorted(done, key=lambda trial: trial["end"]["wall"]):
        value = trial["value"]
        if not points or (value > points[-1][1] if maximize else value < points[-1][1]):
            points.append((trial["end"][clock], value))
    return points


def time_to(record: Record, target: float, clock: str, maximize: bool = True) -> float:
    """Seconds until the best value so far was at least as good as `target`, or `NEVER`."""
    for seconds, value in curve(record, clock, maximize):
        if value >= target if maximize else value <= target:
            return seconds
    return NEVER


def figures(
    record: Record, stock: Record | None, objective: str, maximize: bool = True
) -> dict[str, tuple[int, float | None]]:
    """The figures of one run, in the order of the table.

    Args:
        record: Record of the run.
        stock: Record of the stock search with the same seed; None if there is none.
        objective: The measure that was searched for.
        maximize: The direction.

    Returns:
        For each title the number of decimal places and the figure; None where there is none,
        `NEVER` for a value that was not reached.
    """
    reached: dict[str, float | None] = dict.fromkeys(("wall", "cpu"))
    gain = dict(reached)
    if stock is not None:
        for clock in reached:
            target = stock["best_value"]
            reached[clock] = seconds = time_to(record, target, clock, maximize)
            gain[clock] = time_to(stock, target, clock, maximize) / seconds
    states = [trial["state"] for trial in record["trials"]]
    spent = {section: time["cpu"] for section, time in record["spent"].items()}
    best, to_best = f"{objective} of the winner", "to the best value of stock"
    return {
        "whole search, wall s": (0, record["wall_seconds"]),
        "whole search, CPU s": (0, record["cpu_seconds"]),
        "trials complete": (0, states.count("COMPLETE")),
        "trials pruned": (0, states.count("PRUNED")),
        "trials failed": (0, states.count("FAIL")),
        f"{best}, as the search says": (4, record["best_value"]),
        f"{best}, measured again on validation": (4, record["validation"][objective]),
        f"{best}, on test": (4, record["test"][objective]),
        f"{to_best}, wall s": (0, reached["wall"]),
        f"{to_best}, CPU s": (0, reached["cpu"]),
        f"{to_best}, stock / this, wall": (1, gain["wall"]),
        f"{to_best}, stock / this, CPU": (1, gain["cpu"]),
        "in training, CPU s": (0, spent["training"]),
        "in evaluation, CPU s": (0, spent["evaluation"]),
        "in saving, CPU s": (0, spent.get("saving", 0.0)),
        "in everything else, CPU s": (0, spent.get("everything else", 0.0)),
        "whole search / its training, CPU": (2, record["cpu_seconds"] / spent["training"]),
        "evaluations": (0, record["n_evaluations"]),
        "generated tokens": (0, record["n_generated_tokens"]),
        "peak memory, MB": (0, record["megabytes_peak"]),
        "peak memory above that before, MB": (
            0,
            record["megabytes_peak"] - record["megabytes_before"],
        ),
        "models alive at once": (0, record["most_models_alive"]),
        "optimizers alive at once": (0, record["most_optimizers_alive"]),
        "rank correlation, cheap with full value": (2, rank_correlation(record)),
    }


def rank_correlation(record: Record) -> float | None:
    """Spearman's rank correlation of the cheap value of an epoch with the full value of its trial.

    None where fewer than three complete trials have both, or all of one kind are equal.
    """
    trials = [t for t in record["trials"] if None not in (t["epoch_value"], t["value"])]
    if len(trials) < 3:
        return None
    ranks = pd.DataFrame([(t["epoch_value"], t["value"]) for t in trials]).rank()
    if (ranks.nunique() == 1).any():
        return None
    return float(ranks.corr().iloc[0, 1])


def summarise(
    records: Sequence[Record], objective: str, maximize: bool = True
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every figure of every method over the seeds, by title and by method.

    Returns:
        `digits`, `median`, `low`, `high` and the `values` by seed; a value that was not reached is
        None, and `never` counts those.
    """
    stock = {record["seed"]: record for record in records if record["method"] == "stock"}
    found: dict[str, dict[str, dict[int, tuple[int, float | None]]]] = {}
    for record in records:
        seed, method = record["seed"], record["method"]
        for title, figure in figures(record, stock.get(seed), objective, maximize).items():
            found.setdefault(title, {}).setdefault(method, {})[seed] = figure
    return {
        title: {method: _spread(by_seed) for method, by_seed in methods.items()}
        for title, methods in found.items()
    }


def _spread(by_seed: Mapping[int, tuple[int, float | None]]) -> dict[str, Any]:
    digits = next(iter(by_seed.values()))[0]
    known = [value for _, value in by_seed.values() if value is not None]
    return {
        "digits": digits,
        "median": _finite(statistics.median(known) if known else None),
        "low": _finite(min(known, default=None)),
        "high": _finite(max(known, default=None)),
        "never": known.count(NEVER),
        "values": {str(seed): _finite(value) for seed, (_, value) in sorted(by_seed.items())},
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def table_rows(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    """The summary as a header and rows: median, and the range where there are several seeds."""
    methods = list(next(iter(summary.values())))
    rows = [[title, *(_cell(cells[m]) for m in methods)] for title, cells in summary.items()]
    return [["", *methods], *rows]


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return "never" if figure["never"] else "-"
    median, low, high = (
        "never" if figure[name] is None else f"{figure[name]:.{figure['digits']}f}"
        for name in ("median", "low", "high")
    )
    return median if len(figure["values"]) == 1 else f"{median} ({low} to {high})"


def stock_faults(records: Iterable[Record]) -> list[str]:
    """Two faults of the stock search as its records show them, one sentence each."""
    return [
        sentence
        for record in records
        if record["method"] == "stock"
        for sentence in (_lost_warmup(record), _lonely_reports(record))
    ]


def _lost_warmup(record: Record) -> str:
    pairs = list(zip(record["trials"], record["trainings"], strict=False))
    asked = [t["params"].get("warmup_ratio", 0.0) * run["n_steps"] for t, run in pairs]
    ran = sum(run["warmup_steps"] for _, run in pairs)
    return (
        f"seed {record['seed']}, warm-up: the trials asked for {min(asked):.0f} to {max(asked):.0f}"
        f" steps of it, {sum(asked):.0f} in all, and ran {ran}"
    )


def _lonely_reports(record: Record) -> str:
    reports = [set(trial["reports"]) for trial in record["trials"] if trial["reports"]]
    firsts = ", ".join(map(str, sorted({min(map(int, steps)) for steps in reports})))
    alone = sum(len(steps.difference(*reports[:i])) for i, steps in enumerate(reports))
    return (
        f"seed {record['seed']}, pruning: the first epoch of a trial was reported as step {firsts} "
        f"(optimizer steps); {alone} of {sum(map(len, reports))} reports met no earlier one at "
        "their step"
    )

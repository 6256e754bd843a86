"""From the records of single runs to figures over the seeds; nothing is run here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

Record = Mapping[str, Any]
NEVER = math.inf


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        title: What it is, with its unit.
        digits: Number of digits behind the decimal point.
        read: Takes the record of a run, and that of the stock search with the same seed, and
            returns the figure; None where there is none, `NEVER` for a time that did not come.
    """

    title: str
    digits: int
    read: Callable[[Record, Record | None], float | None]


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


def metrics(objective: str, maximize: bool = True) -> list[Metric]:
    """The rows of the table."""

    def reached(record: Record, stock: Record | None, clock: str) -> float | None:
        if stock is None:
            return None
        return time_to(record, stock["best_value"], clock, maximize)

    def gain(record: Record, stock: Record | None, clock: str) -> float | None:
        if stock is None:
            return None
        target = stock["best_value"]
        ours = time_to(record, target, clock, maximize)
        return time_to(stock, target, clock, maximize) / ours

    def spent(section: str) -> Callable[[Record, Record | None], float]:
        return lambda record, _: record["spent"].get(section, {"cpu": 0.0})["cpu"]

    def counted(state: str) -> Callable[[Record, Record | None], float]:
        return lambda record, _: sum(trial["state"] == state for trial in record["trials"])

    best = f"{objective} of the winner"
    to_best = "to the best value of stock"
    return [
        Metric("whole search, wall s", 0, lambda r, _: r["wall_seconds"]),
        Metric("whole search, CPU s", 0, lambda r, _: r["cpu_seconds"]),
        Metric("trials complete", 0, counted("COMPLETE")),
        Metric("trials pruned", 0, counted("PRUNED")),
        Metric("trials failed", 0, counted("FAIL")),
        Metric(f"{best}, as the search says", 4, lambda r, _: r["best_value"]),
        Metric(f"{best}, measured again on validation", 4, lambda r, _: r["validation"][objective]),
        Metric(f"{best}, on test", 4, lambda r, _: r["test"][objective]),
        Metric(f"{to_best}, wall s", 0, lambda r, s: reached(r, s, "wall")),
        Metric(f"{to_best}, CPU s", 0, lambda r, s: reached(r, s, "cpu")),
        Metric(f"{to_best}, stock / this, wall", 1, lambda r, s: gain(r, s, "wall")),
        Metric(f"{to_best}, stock / this, CPU", 1, lambda r, s: gain(r, s, "cpu")),
        Metric("in training, CPU s", 0, spent("training")),
        Metric("in evaluation, CPU s", 0, spent("evaluation")),
        Metric("in saving, CPU s", 0, spent("saving")),
        Metric("in everything else, CPU s", 0, spent("everything else")),
        Metric("whole search / its training, CPU", 2, lambda r, _: _over_training(r)),
        Metric("evaluations", 0, lambda r, _: r["n_evaluations"]),
        Metric("generated tokens", 0, lambda r, _: r["n_generated_tokens"]),
        Metric("peak memory, MB", 0, lambda r, _: r["megabytes_peak"]),
        Metric("peak memory above that before, MB", 0, lambda r, _: _memory(r)),
        Metric("models alive at once", 0, lambda r, _: r["most_models_alive"]),
        Metric("optimizers alive at once", 0, lambda r, _: r["most_optimizers_alive"]),
        Metric("rank correlation, cheap with full value", 2, lambda r, _: rank_correlation(r)),
    ]


def _over_training(record: Record) -> float:
    return record["cpu_seconds"] / record["spent"]["training"]["cpu"]


def _memory(record: Record) -> float:
    return record["megabytes_peak"] - record["megabytes_before"]


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
    """Every figure of every method over the seeds, by title of the metric and by method.

    Returns:
        `median`, `low`, `high` and the `values` by seed; a time that never came is None, and
        `never` counts those.
    """
    stock = {record["seed"]: record for record in records if record["method"] == "stock"}
    names = dict.fromkeys(record["method"] for record in records)
    return {
        metric.title: {
            name: _spread(
                {r["seed"]: metric.read(r, stock.get(r["seed"])) for r in _of(records, name)}
            )
            for name in names
        }
        for metric in metrics(objective, maximize)
    }


def _of(records: Iterable[Record], method: str) -> list[Record]:
    return sorted((r for r in records if r["method"] == method), key=lambda r: r["seed"])


def _spread(by_seed: Mapping[int, float | None]) -> dict[str, Any]:
    known = [value for value in by_seed.values() if value is not None]
    middle = statistics.median(known) if known else None
    return {
        "median": _finite(middle),
        "low": _finite(min(known, default=None)),
        "high": _finite(max(known, default=None)),
        "never": sum(value == NEVER for value in known),
        "values": {str(seed): _finite(value) for seed, value in by_seed.items()},
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def table_rows(
    summary: Mapping[str, Mapping[str, Mapping[str, Any]]], digits: Mapping[str, int]
) -> list[list[str]]:
    """The summary as a header and rows: median, and the range where there are several seeds."""
    methods = list(next(iter(summary.values())))
    return [
        ["", *methods],
        *(
            [title, *(_cell(cells[method], digits[title]) for method in methods)]
            for title, cells in summary.items()
        ),
    ]


def _cell(figure: Mapping[str, Any], digits: int) -> str:
    never = figure["never"]
    if figure["low"] is None:
        return "never" if never else "-"

    def shown(value: float | None) -> str:
        return "never" if value is None else f"{value:.{digits}f}"

    if len(figure["values"]) == 1:
        return shown(figure["median"])
    return f"{shown(figure['median'])} ({shown(figure['low'])} to {shown(figure['high'])})"


def stock_faults(record: Record) -> list[str]:
    """What the record of a stock search shows of its two faults that matter here, in sentences."""
    pairs = list(zip(record["trials"], record["trainings"], strict=False))
    asked = [t["params"].get("warmup_ratio", 0.0) * run["n_steps"] for t, run in pairs]
    ran = [run["warmup_steps"] for _, run in pairs]
    found = [
        f"seed {record['seed']}, warm-up: the trials asked for {min(asked):.0f} to {max(asked):.0f}"
        f" steps of it, {sum(asked):.0f} in all, and ran {sum(ran)}"
    ]
    trials = [t for t in record["trials"] if t["reports"]]
    firsts = sorted({min(map(int, t["reports"])) for t in trials})
    alone, total = 0, 0
    for index, trial in enumerate(trials):
        for step in trial["reports"]:
            total += 1
            alone += not any(step in earlier["reports"] for earlier in trials[:index])
    steps = ", ".join(str(step) for step in firsts)
    found.append(
        f"seed {record['seed']}, pruning: the first epoch of a trial was reported as step {steps} "
        f"(optimizer steps); {alone} of {total} reports met no earlier one at their step"
    )
    return found


def to_arrays(points: Sequence[tuple[float, float]], end: float) -> tuple[list[float], list[float]]:
    """A curve as coordinates for a plot, drawn on to the end of its search."""
    if not points:
        return [], []
    xs, ys = np.array(points).T.tolist()
    return [*xs, end], [*ys, ys[-1]]

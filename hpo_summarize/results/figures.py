"""What a plot is, and the plots of the trials' values and times by `optuna.visualization`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.results.drawable import safe
from hpo_summarize.results.outcome import Fate, Outcome

BLUE, RED, GREY, ORANGE = "#2563a8", "#c8321e", "#a3acb8", "#e08a1e"
GREEN, PURPLE = "#3a8f5c", "#7b4fa3"
_COLORS = {"COMPLETE": BLUE, "PRUNED": ORANGE, "FAIL": RED, "RUNNING": GREEN}

# An objective's name, and a copy of the study with this objective alone.
Single = tuple[str, optuna.Study]


@dataclass
class Plot:
    """One plot of a study: a page of its own, and a section of the report.

    Attributes:
        name: Name of the page's file without its suffix.
        title: Heading.
        hint: How to read it.
        problem: Why something is not drawn, for the reader.
        figures: What is drawn, each with a heading, which may be empty.
        side_by_side: Whether figures stand beside each other where there is room.
        min_width: Pixels that a figure needs; it is scrolled on a smaller screen.
    """

    name: str
    title: str
    hint: str
    problem: str = ""
    figures: list[tuple[str, go.Figure]] = field(default_factory=list)
    side_by_side: bool = False
    min_width: int = 0

    def add(self, heading: str, figure: go.Figure) -> None:
        """Adds a figure in the common layout; its own title gives way to the heading."""
        figure.update_layout(
            template="plotly_white",
            title=None,
            margin={"l": 8, "r": 8, "t": 48, "b": 8},
            legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
            font={"family": "system-ui, sans-serif", "size": 12},
        )
        figure.update_xaxes(automargin=True)
        figure.update_yaxes(automargin=True)
        self.figures.append((heading, figure))


def draw_pareto_front(outcome: Outcome, study: optuna.Study) -> Plot:
    """The objectives against each other, two at a time."""
    hint = "Red: no other trial is better in one objective and as good in all others."
    plot = Plot("pareto_front", "Pareto front", hint, why_no_value(outcome), side_by_side=True)
    names = [safe(name) for name in outcome.objectives]
    pairs = itertools.combinations(range(len(names)), 2)
    for pair in () if plot.problem else pairs:
        figure = visualization.plot_pareto_front(
            study,
            targets=functools.partial(_pick_values, indices=pair),
            target_names=[names[index] for index in pair],
        )
        looks = [("other complete trials", GREY, 7), ("Pareto front", RED, 10)]
        for trace, (name, color, size) in zip(figure.data, looks, strict=True):
            trace.update(name=name, showlegend=True)
            trace.marker = {"color": color, "size": size}
        plot.add("", figure)
    return plot


def _pick_values(trial: FrozenTrial, indices: Sequence[int]) -> list[float]:
    return [trial.values[index] for index in indices]


def draw_history(outcome: Outcome, singles: Sequence[Single]) -> Plot:
    """The values of the trials in their order."""
    hint = "Each point is a complete trial; the line is the best value so far."
    problem = why_no_value(outcome)
    plot = Plot("optimization_history", "Optimization history", hint, problem)
    plot.side_by_side = outcome.several
    for name, study in () if plot.problem else singles:
        figure = visualization.plot_optimization_history(study, target_name=safe(name))
        figure.data[0].marker = {"color": BLUE, "size": 8}
        figure.data[1].update(name="best so far", line={"color": RED, "shape": "hv"})
        figure.update_xaxes(title="trial", **_whole_ticks(len(study.trials)))
        plot.add(heading_for(outcome, name), figure)
    return plot


def draw_intermediate_values(outcome: Outcome, study: optuna.Study) -> Plot:
    """The objective after each epoch."""
    hint = "One line a trial. Red: the best trial. Orange: pruned trials. Failed ones are left out."
    plot = Plot("intermediate_values", "Values after each epoch", hint)
    if outcome.several:
        plot.problem = (
            "With several objectives no values are kept for the single epochs, as Optuna prunes "
            "only by one objective."
        )
        return plot
    figure = visualization.plot_intermediate_values(study)
    if not figure.data:
        plot.problem = "No trial has reported a value after an epoch."
        return plot
    pruned = {trial.number for trial in study.trials if trial.state == TrialState.PRUNED}
    best = {trial.number for trial in outcome.best}
    for trace in figure.data:
        number = int(trace.name.removeprefix("Trial"))
        color = RED if number in best else ORANGE if number in pruned else GREY
        trace.update(line={"color": color, "width": 3 if number in best else 1.2})
        trace.zorder = int(number in best)
        trace.update(marker={"color": color}, name=f"trial {number}", mode="lines+markers")
    longest = max(max(trace.x) for trace in figure.data)
    figure.update_xaxes(title="epoch", **_whole_ticks(longest + 1))
    figure.update_yaxes(title=safe(outcome.objectives[0]))
    plot.add("", figure)
    return plot


def draw_timeline(outcome: Outcome, study: optuna.Study) -> Plot:
    """When each trial ran."""
    plot = Plot("timeline", "Timeline", "One bar a trial, from its start to its end.")
    if not any(trial.datetime_start for trial in outcome.trials):
        plot.problem = "No trial has started yet."
        return plot
    figure = visualization.plot_timeline(study)
    figure.data = [trace for trace in figure.data if trace.name != "WAITING"]
    interrupted = " or interrupted" if outcome.counts[Fate.INTERRUPTED] else ""
    for trace in figure.data:
        trace.marker.color = _COLORS[trace.name]
        trace.name = f"failed{interrupted}" if trace.name == "FAIL" else trace.name.lower()
    figure.update_xaxes(title="time")
    figure.update_yaxes(title="trial", **_whole_ticks(len(outcome.trials)))
    plot.add("", figure)
    return plot


def why_no_value(outcome: Outcome) -> str:
    """Why a plot of values is missing; empty where there is a value."""
    return "" if outcome.best else outcome.why_no_result()


def heading_for(outcome: Outcome, name: str) -> str:
    """The heading of one objective's figure; none where it is the only one."""
    return name if outcome.several else ""


def _whole_ticks(count: int) -> dict[str, Any]:
    """Ticks at whole numbers only, for an axis of `count` of them."""
    return {"dtick": 1} if count <= 12 else {"tickformat": "d"}

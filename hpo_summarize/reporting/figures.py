"""The plots of a study by `optuna.visualization`, and the reason where one cannot be drawn."""

from __future__ import annotations

import functools
import html
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale

from hpo_summarize.reporting.outcome import Fate, Outcome, is_finite
from hpo_summarize.reporting.sanitized import safe

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


# From the worst or first trial to the best or last; even the palest shows on white.
_SCALE = ["#c3d0de", BLUE, "#0a2142"]
_ENOUGH_TRIALS = 20  # So that the best tenth, which PED-ANOVA looks at, is more than one trial.


def draw_importances(outcome: Outcome, singles: Sequence[Single]) -> Plot:
    """How much each hyperparameter matters."""
    hint = (
        "How much each hyperparameter decides whether a trial is among the best tenth (PED-ANOVA); "
        "together they make 1."
    )
    n_complete = sum(is_finite(trial) for trial in outcome.trials)
    if n_complete < _ENOUGH_TRIALS:
        hint += f" Only {n_complete} trials are complete: take this for a first guess."
    plot = Plot("param_importances", "Hyperparameter importances", hint)
    problems = []
    for name, study in singles:
        if problem := why_no_value(outcome) or _why_no_importance(name, study):
            problems.append(problem)
            continue
        # In a fixed order: Optuna's own differs from run to run where importances are equal.
        params = _params(study)
        figure = visualization.plot_param_importances(study, params=params)
        figure.update_traces(marker_color=BLUE)
        figure.update_xaxes(title="importance", range=[0, 1.15 * max(figure.data[0].x)])
        labels = [_wrap(param, 24) for param in params]
        n_lines = max(label.count("<br>") + 1 for label in labels)
        figure.update_yaxes(title=None, tickvals=params, ticktext=labels)
        figure.update_layout(height=120 + (12 + 16 * n_lines) * len(params))
        plot.add(heading_for(outcome, name), figure)
    plot.problem = " ".join(dict.fromkeys(problems))
    return plot


def _why_no_importance(name: str, study: optuna.Study) -> str:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(trials) == 1:
        return "There is one complete trial; importances compare trials and need more."
    if len({trial.value for trial in trials}) == 1:
        return (
            f"All {len(trials)} complete trials have the same {name}, so no hyperparameter made "
            "a difference."
        )
    if all(d.single() for trial in trials for d in trial.distributions.values()):
        return "No hyperparameter had more than one value to choose from."
    return ""


def draw_parallel_coordinate(outcome: Outcome, singles: Sequence[Single]) -> Plot:
    """Each trial as a line through its values."""
    hint = (
        "Each line is a complete trial, through its hyperparameters. None: the hyperparameter was "
        "not in use. The better the value, the darker the line."
    )
    problem = why_no_value(outcome) or _why_no_parameter(singles)
    plot = Plot("parallel_coordinate", "Parallel coordinates", hint, problem)
    for name, study in () if plot.problem else singles:
        figure = visualization.plot_parallel_coordinate(study, target_name=safe(name))
        _darken_lines(figure, study.direction)
        # Optuna cuts names off after 20 characters.
        axes = [safe(name), *_params(study)]
        plot.add(heading_for(outcome, name), figure)
        figure.update_xaxes(ticktext=[_wrap(axis, 14) for axis in axes], tickangle=0)
        figure.update_annotations(bgcolor="rgba(255, 255, 255, 0.8)")
        figure.update_layout(height=520, margin={"l": 56, "r": 8})
        plot.min_width = 110 * (len(axes) + 1)
    return plot


def _darken_lines(figure: go.Figure, direction: StudyDirection) -> None:
    """Colors and orders the lines by rank: on Optuna's scale those of poor trials are white."""
    sign = 1 if direction == StudyDirection.MAXIMIZE else -1
    # The first axis is the objective; the trace without a line carries only a color bar.
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    lines.sort(key=lambda line: sign * line.y[0])
    ranks = [(rank + 1) / len(lines) for rank in range(len(lines))]
    for line, color in zip(lines, sample_colorscale(_SCALE, ranks), strict=True):
        line.update(line={"color": color}, opacity=0.8)
    figure.data = lines


def draw_slice(outcome: Outcome, singles: Sequence[Single]) -> Plot:
    """The objective against each hyperparameter alone."""
    hint = "Each point is a complete trial; later trials are darker."
    problem = why_no_value(outcome) or _why_no_parameter(singles)
    plot = Plot("slice", "One hyperparameter at a time", hint, problem, side_by_side=True)
    for name, study in () if plot.problem else singles:
        for param in _params(study):
            figure = visualization.plot_slice(study, params=[param], target_name=safe(name))
            figure.update_traces(marker={"showscale": False, "size": 8, "colorscale": _SCALE})
            _sort_categories(figure, study, param)
            figure.update_xaxes(title=_wrap(param, 34))
            if figure.layout.xaxis.type == "log":
                figure.update_xaxes(tickformat=".0e")
            plot.add("", figure)
            figure.update_layout(height=300, margin={"t": 28})
    return plot


def _sort_categories(figure: go.Figure, study: optuna.Study, param: str) -> None:
    """Puts choices in order, numbers by value, and shows text without quotes."""
    distributions = [trial.distributions.get(param) for trial in study.trials]
    known = next(d for d in distributions if d is not None)
    if not isinstance(known, CategoricalDistribution):
        return
    labels = {repr(choice): str(choice) for choice in sorted(known.choices, key=_sort_key)}
    for trace in figure.data:
        trace.x = [labels[x] for x in trace.x]
    figure.update_xaxes(categoryarray=list(labels.values()))


def _sort_key(choice: Any) -> tuple[int, float, str]:
    is_number = isinstance(choice, bool | int | float)
    return (choice is not None) + (not is_number), choice if is_number else 0.0, str(choice)


def _why_no_parameter(singles: Sequence[Single]) -> str:
    return "" if _params(singles[0][1]) else "The trials have no hyperparameter to show."


def _params(study: optuna.Study) -> list[str]:
    """The hyperparameters of the complete trials, by name."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted({name for trial in trials for name in trial.params})


def _wrap(name: str, width: int) -> str:
    """A long name on several lines, broken at its underscores."""
    lines = [""]
    for part in re.split(r"(?<=_)", name):
        if lines[-1] and len(html.unescape(lines[-1] + part)) > width:
            lines.append("")
        lines[-1] += part
    return "<br>".join(lines)

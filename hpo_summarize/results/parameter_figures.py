"""The plots of hyperparameters by `optuna.visualization`, or why one cannot be drawn."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from plotly.colors import sample_colorscale

from hpo_summarize.results.drawable import safe
from hpo_summarize.results.figures import BLUE, Plot, Single, heading_for, why_no_value
from hpo_summarize.results.outcome import Outcome, is_finite

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

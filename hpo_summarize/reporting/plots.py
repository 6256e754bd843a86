"""The plots of a study: figures of `optuna.visualization` in one template, each on a page."""

from __future__ import annotations

import functools
import html
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.io import write_text
from hpo_summarize.redact import redact_url
from hpo_summarize.reporting.outcome import (
    Outcome,
    Status,
    best_epoch_of,
    failure_of,
    is_finite,
    read_study,
    status_of,
)
from hpo_summarize.reporting.page import Plot, build_page, fill, plot_html
from hpo_summarize.study.trials import seconds_of
from hpo_summarize.study.user_attrs import BEST_EPOCH, FAILURE

_NOTHING_TO_COMPARE = (
    "There is nothing to compare: the complete trials have no hyperparameters, or all of them have "
    "the same value."
)


def _importances(study: optuna.Study, target_name: str) -> go.Figure:
    """Optuna's plot; empty where all values are equal, of which PED-ANOVA makes an importance."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in trials}) == 1:
        return go.Figure()
    # Sorted: equal importances come in the order of a set otherwise, another one in every process.
    params = sorted({name for trial in trials for name in trial.params})
    return visualization.plot_param_importances(study, params=params, target_name=target_name)


# Plots of one objective: name, title, hint and the function that draws it.
_OF_ONE_OBJECTIVE: list[tuple[str, str, str, Callable[..., go.Figure]]] = [
    (
        "optimization_history",
        "Optimization history",
        "Each point is a complete trial; the line is the best value so far.",
        visualization.plot_optimization_history,
    ),
    (
        "param_importances",
        "Hyperparameter importances",
        "How much each hyperparameter decides whether a trial is among the best tenth (PED-ANOVA); "
        "the sum is 1. With fewer than 20 complete trials this is a first guess.",
        _importances,
    ),
    (
        "parallel_coordinate",
        "Parallel coordinates",
        "Each line is a complete trial, through its hyperparameters. None: the hyperparameter was "
        "not in use.",
        visualization.plot_parallel_coordinate,
    ),
    (
        "slice",
        "One hyperparameter at a time",
        "Each point is a complete trial; later trials are darker.",
        visualization.plot_slice,
    ),
]


def draw_plots(outcome: Outcome) -> list[Plot]:
    """All plots of a study; those of a single value are drawn for each objective."""
    with _quiet():
        whole = copy_study(outcome, range(len(outcome.objectives)))
        singles = [copy_study(outcome, [index]) for index in range(len(outcome.objectives))]
        return [
            *([_draw_pareto_front(outcome, whole)] if outcome.several else []),
            *(_draw_each(outcome, singles, *plot) for plot in _OF_ONE_OBJECTIVE),
            # A step of a decoding stage is a block of rows; a line over them shows nothing.
            *([] if outcome.is_decoding else [_draw_intermediate_values(outcome, whole)]),
            _draw_timeline(whole),
        ]


def _draw_each(
    outcome: Outcome,
    singles: Sequence[optuna.Study],
    name: str,
    title: str,
    hint: str,
    draw: Callable[..., go.Figure],
) -> Plot:
    plot = Plot(name, title, hint, outcome.why_no_result())
    for objective, study in zip(outcome.objectives, singles, strict=True) if outcome.best else ():
        figure = draw(study, target_name=safe(objective))
        if figure.data:
            plot.add(objective if outcome.several else "", figure)
        else:
            plot.problem = _NOTHING_TO_COMPARE
    return plot


def _draw_pareto_front(outcome: Outcome, study: optuna.Study) -> Plot:
    """Two objectives at a time: points in three dimensions cannot be read off a page."""
    hint = "Best trials: no other trial is better in one objective and as good in all others."
    plot = Plot("pareto_front", "Pareto front", hint, outcome.why_no_result())
    names = [safe(name) for name in outcome.objectives]
    for pair in itertools.combinations(range(len(names)), 2) if outcome.best else ():
        targets = functools.partial(_values_at, indices=pair)
        pair_names = [names[index] for index in pair]
        plot.add(
            "", visualization.plot_pareto_front(study, targets=targets, target_names=pair_names)
        )
    return plot


def _values_at(trial: FrozenTrial, indices: Sequence[int]) -> list[float]:
    return [trial.values[index] for index in indices]


def _draw_intermediate_values(outcome: Outcome, study: optuna.Study) -> Plot:
    hint = "One line for each trial; failed trials are left out."
    plot = Plot("intermediate_values", "Values after each epoch", hint)
    figure = visualization.plot_intermediate_values(study)
    if figure.data:
        figure.update_layout(xaxis_title="Epoch", yaxis_title=safe(outcome.objectives[0]))
        plot.add("", figure)
    elif outcome.several:
        plot.problem = "Not reported: Optuna does not prune trials with several objectives."
    else:
        plot.problem = "No trial has reported a value after an epoch."
    return plot


def _draw_timeline(study: optuna.Study) -> Plot:
    hint = "One bar for each trial, from its start to its end. FAIL: failed or interrupted."
    plot = Plot("timeline", "Timeline", hint)
    figure = visualization.plot_timeline(study)
    figure.data = [trace for trace in figure.data if trace.name != TrialState.WAITING.name]
    if figure.data:
        plot.add("", figure)
    else:
        plot.problem = "No trial has started yet."
    return plot


def write_plots(study: optuna.Study, output_dir: Path) -> list[Path]:
    """Writes a page for each plot; where one cannot be drawn, its page says why.

    The pages are `optimization_history.html`, `param_importances.html`,
    `parallel_coordinate.html`, `slice.html`, `intermediate_values.html` and `timeline.html`; with
    several objectives also `pareto_front.html`, and the first four show each objective. A decoding
    stage has no `intermediate_values.html`.

    Args:
        study: One objective or several.
        output_dir: Folder for the files; made if there is none.

    Returns:
        The paths of the pages.
    """
    outcome = read_study(study)
    paths = []
    for plot in draw_plots(outcome):
        title = f"{plot.title}: {outcome.name}"
        body = fill("<h1>{{ title }}</h1>\n{{ plot }}", title=title, plot=plot_html(plot))
        paths.append(output_dir / f"{plot.name}.html")
        write_text(paths[-1], build_page(title, body, draws=bool(plot.figures)))
    return paths


def copy_study(outcome: Outcome, objectives: Sequence[int]) -> optuna.Study:
    """A study in memory for Optuna's plots, with some of the objectives.

    Optuna draws a failed trial that is marked as pruned like a pruned one, and plotly takes text
    for HTML. In the copy such a trial has the state FAIL, like one without a finite value; texts
    are escaped and hold no password. Numbers of trials stay the same.

    Args:
        outcome: The study.
        objectives: Index of each objective to keep; the order is that of the values.
    """
    directions = [StudyDirection[outcome.directions[index].upper()] for index in objectives]
    study = optuna.create_study(directions=directions)
    shown = {trial.number: trial for trial in outcome.trials}
    # Optuna numbers trials as they come; a waiting one takes the number of one that is not shown.
    waiting = optuna.trial.create_trial(state=TrialState.WAITING)
    for number in range(max(shown, default=-1) + 1):
        study.add_trial(_copy_trial(shown[number], objectives) if number in shown else waiting)
    return study


def safe(text: str) -> str:
    """Text that plotly shows as it stands, without passwords."""
    return html.escape(redact_url(text), quote=False)


def _copy_trial(trial: FrozenTrial, objectives: Sequence[int]) -> FrozenTrial:
    notes = {BEST_EPOCH: best_epoch_of(trial), FAILURE: failure_of(trial)}
    drawn = is_finite(trial) or not trial.state.is_finished() or status_of(trial) is Status.PRUNED
    copy = optuna.trial.create_trial(
        state=trial.state if drawn else TrialState.FAIL,
        values=[trial.values[index] for index in objectives] if is_finite(trial) else None,
        params={safe(name): _safe_value(value) for name, value in trial.params.items()},
        distributions={safe(n): _safe_choices(d) for n, d in trial.distributions.items()},
        user_attrs={key: _safe_value(note) for key, note in notes.items() if note is not None},
        intermediate_values=trial.intermediate_values,
    )
    copy.datetime_start, copy.datetime_complete = trial.datetime_start, None
    if trial.datetime_start is not None and (seconds := seconds_of(trial)) is not None:
        copy.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
    return copy


def _safe_value(value: Any) -> Any:
    return safe(value) if isinstance(value, str) else value


def _safe_choices(distribution: BaseDistribution) -> BaseDistribution:
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalDistribution([_safe_value(choice) for choice in distribution.choices])
    return distribution


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what Optuna says of the copies: that they are made, and are small or experimental."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)

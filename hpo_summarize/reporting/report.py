"""One page over a whole study: the result, every trial, the plots and the recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpo_summarize.generation import count_in_words, degenerate_note
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
    summaries_of,
    trained_trial_of,
)
from hpo_summarize.reporting.page import Plot, build_page, fill, plot_html
from hpo_summarize.reporting.plots import draw_plots
from hpo_summarize.reporting.progress import clock
from hpo_summarize.reporting.summary import final_stage
from hpo_summarize.study.trials import seconds_of, values_of

# `final` is the stage whose best trials are shown, `stages` are all of them.
_BODY = """<h1>{{ stages[0].name }}</h1>
<p class="hint">{{ aims }}</p>
<div class="cards">{% for label, value in cards %}<div>{{ label }}<b>{{ value }}</b></div>
{% endfor %}</div>
{% if not final.best %}<p class="problem">{{ stages[0].why_no_result() }}</p>
{% else %}<h2>{{ "Pareto front" if final.several else "Best hyperparameters" }}</h2>
<div class="table"><table>
{% for name, cells in best_rows %}<tr><th>{{ name }}</th>{% for cell in cells %}<td class="number">
{{- cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% for counts, note, examples in summaries %}<p{% if note %} class="problem"{% endif %}>
{{- counts }}{% if note %}. Note: {{ note }}{% endif %}</p>
<ul>{% for text in examples %}<li>{{ text }}</li>{% endfor %}</ul>
{% endfor %}{% endif %}
{% for title, columns, rows in tables %}<h2>{{ title }}</h2>
<div class="table long"><table>
<thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
{% for is_best, cells in rows %}<tr{% if is_best %} class="best"{% endif %}>
{% for cell in cells[:-1] %}<td class="number">{{ cell }}</td>{% endfor %}
<td class="text">{{ cells[-1] }}</td></tr>
{% endfor %}</table></div>
{% endfor %}{% for title, content in plots %}<h2>{{ title }}</h2>
{{ content }}
{% endfor %}
{% if recipe_text %}<h2>Recipe</h2>
<pre>{{ recipe_text }}</pre>{% endif %}
"""


def write_report(
    study: optuna.Study,
    output_dir: Path,
    recipe_text: str | None = None,
    decoding: optuna.Study | None = None,
) -> Path:
    """Writes `report.html`, which opens without a network.

    Args:
        study: One objective or several.
        output_dir: Folder for the files; made if there is none.
        recipe_text: Text of the recipe to show at the end, passwords hidden. Default: none.
        decoding: The second stage of a staged search; what is best is best there.

    Returns:
        The path of the page.
    """
    outcome = read_study(study)
    stages = [outcome] if decoding is None else [outcome, read_study(decoding)]
    final = final_stage(outcome, stages[-1])
    plots = [(stage, plot) for stage in stages for plot in _plots_to_show(stage)]
    aims = zip(outcome.directions, outcome.objectives, strict=True)
    body = fill(
        _BODY,
        stages=stages,
        final=final,
        aims=", ".join(f"{direction} {name}" for direction, name in aims),
        cards=_cards(stages, final),
        best_rows=_best_rows(final),
        summaries=[_describe_summaries(trial) for trial in final.best if summaries_of(trial)],
        tables=[(_title("Trials", stage), *_trial_table(stage)) for stage in stages],
        plots=[(_title(plot.title, stage), plot_html(plot)) for stage, plot in plots],
        recipe_text=redact_url(recipe_text or ""),
    )
    path = output_dir / "report.html"
    draws = any(plot.figures for _, plot in plots)
    write_text(path, build_page(f"Search report: {outcome.name}", body, draws))
    return path


def _title(title: str, stage: Outcome) -> str:
    return f"{title}: decoding" if stage.is_decoding else title


def _plots_to_show(outcome: Outcome) -> list[Plot]:
    """Plots but for those that only repeat why there is no result; their names differ by stage."""
    known, prefix = outcome.why_no_result(), "decoding_" if outcome.is_decoding else ""
    plots = [plot for plot in draw_plots(outcome) if plot.figures or plot.problem != known]
    return [dataclasses.replace(plot, name=f"{prefix}{plot.name}") for plot in plots]


def _cards(stages: Sequence[Outcome], final: Outcome) -> list[tuple[str, str]]:
    cards = []
    if final.best and not final.several:
        best = final.best[0]
        cards = [(f"best {final.objectives[0]}", _show(best.value))]
        cards += [("trial", str(trained_trial_of(best))), ("epoch", _show(best_epoch_of(best)))]
    elif final.best:
        cards = [("trials on the Pareto front", str(len(final.best)))]
    for stage in stages:
        for status in Status:
            if (count := stage.counts[status]) or status is Status.COMPLETE:
                cards.append((_title(status.label, stage), str(count)))
    seconds = sum(seconds_of(trial) or 0.0 for stage in stages for trial in stage.trials)
    return [*cards, ("time in trials", clock(seconds))]


def _best_rows(outcome: Outcome) -> list[tuple[str, list[str]]]:
    """Name and value of each hyperparameter; a column for each trial of a Pareto front."""
    columns = [values_of(trial) for trial in outcome.best]
    if outcome.several:
        measured = [dict(zip(outcome.objectives, t.values, strict=True)) for t in outcome.best]
        numbers = [{"trial": trained_trial_of(trial)} for trial in outcome.best]
        columns = [n | m | c for n, m, c in zip(numbers, measured, columns, strict=True)]
    names = dict.fromkeys(name for column in columns for name in column)
    return [
        (redact_url(name), [_show(column[name]) if name in column else "" for column in columns])
        for name in names
    ]


def _describe_summaries(trial: FrozenTrial) -> tuple[str, str | None, list[str]]:
    """Counts of the summaries of a best trial, what is wrong with them, and examples."""
    found: Any = summaries_of(trial)
    counts = f"Summaries of trial {trained_trial_of(trial)}: {count_in_words(found)}"
    return counts, degenerate_note(found), found["examples"]


def _trial_table(outcome: Outcome) -> tuple[list[str], list[tuple[bool, list[str]]]]:
    """Names of the columns; whether each trial is among the best, and its cells."""
    trained = ["trained trial"] if outcome.is_decoding else []
    columns = ["trial", *trained, "state", *outcome.objectives, "epoch", "distinct summaries"]
    best = {trial.number for trial in outcome.best}
    rows = [(trial.number in best, _trial_cells(outcome, trial)) for trial in outcome.trials]
    return [*columns, "duration", "failure or note"], rows


def _trial_cells(outcome: Outcome, trial: FrozenTrial) -> list[str]:
    seconds, summaries = seconds_of(trial), summaries_of(trial)
    measured = [*trial.values, best_epoch_of(trial)] if is_finite(trial) else None
    return [
        str(trial.number),
        *([str(trained_trial_of(trial))] if outcome.is_decoding else []),
        status_of(trial).label,
        *(map(_show, measured) if measured else [""] * (len(outcome.objectives) + 1)),
        "{n_distinct} of {n_rows}".format_map(summaries) if summaries else "",
        "" if seconds is None else clock(seconds),
        failure_of(trial) or degenerate_note(summaries) or "",
    ]


def _show(value: Any) -> str:
    """A value as short as a reader needs it; numbers with six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "-"
    if isinstance(value, str):
        return redact_url(value)
    return redact_url(json.dumps(value, ensure_ascii=False))

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
from hpo_summarize.reporting.figures import Plot
from hpo_summarize.reporting.outcome import (
    Fate,
    Outcome,
    best_epoch_of,
    failure_of,
    fate_of,
    is_finite,
    read_study,
    summaries_of,
    trained_trial_of,
)
from hpo_summarize.reporting.plots import build_page, draw_plots, fill, plot_html
from hpo_summarize.reporting.progress import clock
from hpo_summarize.reporting.summary import final_stage
from hpo_summarize.study.trials import seconds_of, values_of

_BODY = """<h1>{{ outcome.name }}</h1>
<p class="hint">{{ aims }}</p>
<div class="cards">{% for label, value in cards %}<div>{{ label }}<b>{{ value }}</b></div>
{% endfor %}</div>
{% if not final.best %}<p class="problem">{{ outcome.why_no_result() }}</p>
{% else %}<h2>{{ "Pareto front" if outcome.several else "Best hyperparameters" }}</h2>
<div class="table"><table>
{% if outcome.several %}<thead><tr><th>trial{% for number in front %}<th class="number">
{{- number }}{% endfor %}</thead>{% endif %}
{% for name, cells in best_rows %}<tr><th>{{ name }}</th>{% for cell in cells %}<td class="number">
{{- cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% for counts, note, examples in summaries %}<p{% if note %} class="problem"{% endif %}>
{{- counts }}{% if note %}. Note: {{ note }}{% endif %}</p>
<ul>{% for text in examples %}<li>{{ text }}</li>{% endfor %}</ul>
{% endfor %}{% endif %}
{% for title, stage, trial_rows in tables %}<h2>{{ title }}</h2>
<div class="table long"><table>
<thead><tr><th class="number">trial</th>{% if stage.is_decoding %}
<th class="number">trained trial</th>{% endif %}<th>state</th>{% for name in outcome.objectives %}
<th class="number">{{ name }}</th>{% endfor %}<th class="number">epoch</th>
<th class="number">distinct summaries</th>
<th class="number">duration</th><th>failure or note</th></tr></thead>
{% for row in trial_rows %}<tr{% if row.best %} class="best"{% endif %}>
<td class="number">{{ row.number }}</td>{% if stage.is_decoding %}
<td class="number">{{ row.trained }}</td>{% endif %}<td>{{ row.state }}</td>
{% for value in row["values"] %}<td class="number">{{ value }}</td>{% endfor %}
<td class="number">{{ row.epoch }}</td><td class="number">{{ row.distinct }}</td>
<td class="number">{{ row.duration }}</td><td class="text">{{ row.remark }}</td></tr>
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
    plots = [(stage, plot) for stage in stages for plot in _telling_plots(stage)]
    body = fill(
        _BODY,
        outcome=outcome,
        final=final,
        aims=", ".join(
            f"{direction} {name}"
            for name, direction in zip(outcome.objectives, outcome.directions, strict=True)
        ),
        cards=_headline(stages, final),
        best_rows=_best_rows(final),
        summaries=[_summaries_row(trial) for trial in final.best if summaries_of(trial)],
        front=[trained_trial_of(trial) for trial in final.best],
        tables=[(_title("Trials", stage), stage, _trial_rows(stage)) for stage in stages],
        plots=[(_title(plot.title, stage), plot_html(plot)) for stage, plot in plots],
        recipe_text=redact_url(recipe_text or ""),
    )
    path = output_dir / "report.html"
    draws = any(plot.figures for _, plot in plots)
    write_text(path, build_page(f"Search report: {outcome.name}", body, draws))
    return path


def _summaries_row(trial: FrozenTrial) -> tuple[str, str | None, list[str]]:
    """Counts of the summaries of a best trial, what is wrong with them, and examples."""
    found: Any = summaries_of(trial)
    counts = f"Summaries of trial {trained_trial_of(trial)}: {count_in_words(found)}"
    return counts, degenerate_note(found), found["examples"]


def _title(title: str, stage: Outcome) -> str:
    return f"{title}: decoding" if stage.is_decoding else title


def _telling_plots(outcome: Outcome) -> list[Plot]:
    """Plots with something to say, each with a name of its own on a page of both stages."""
    told, stage = outcome.why_no_result(), "decoding_" if outcome.is_decoding else ""
    plots = [plot for plot in draw_plots(outcome) if plot.figures or plot.problem != told]
    return [dataclasses.replace(plot, name=f"{stage}{plot.name}") for plot in plots]


def _trial_rows(outcome: Outcome) -> list[dict[str, Any]]:
    return [_trial_row(outcome, trial) for trial in outcome.trials]


def _headline(stages: Sequence[Outcome], final: Outcome) -> list[tuple[str, str]]:
    cards = []
    if final.best and not final.several:
        best = final.best[0]
        cards = [(f"best {final.objectives[0]}", _show(best.value))]
        cards += [("trial", str(trained_trial_of(best))), ("epoch", _show(best_epoch_of(best)))]
    elif final.best:
        cards = [("trials on the Pareto front", str(len(final.best)))]
    for stage in stages:
        for fate in Fate:
            if (count := stage.counts[fate]) or fate is Fate.COMPLETE:
                cards.append((_title(_state(fate), stage), str(count)))
    seconds = sum(seconds_of(trial) or 0.0 for stage in stages for trial in stage.trials)
    return [*cards, ("time in trials", clock(seconds))]


def _best_rows(outcome: Outcome) -> list[tuple[str, list[str]]]:
    """Name and value of each hyperparameter, with one value for each of the best trials."""
    columns = [values_of(trial) for trial in outcome.best]
    rows = []
    if outcome.several:
        values = [[_show(value) for value in trial.values] for trial in outcome.best]
        rows = list(zip(outcome.objectives, map(list, zip(*values, strict=True)), strict=False))
    names = sorted({name for column in columns for name in column})
    return rows + [
        (redact_url(name), [_show(column[name]) if name in column else "" for column in columns])
        for name in names
    ]


def _trial_row(outcome: Outcome, trial: FrozenTrial) -> dict[str, Any]:
    seconds, summaries = seconds_of(trial), summaries_of(trial)
    values = trial.values if is_finite(trial) else [None] * len(outcome.objectives)
    return {
        "number": trial.number,
        "trained": trained_trial_of(trial),
        "state": _state(fate_of(trial)),
        "values": ["" if value is None else _show(value) for value in values],
        "epoch": _show(best_epoch_of(trial)) if is_finite(trial) else "",
        "duration": "" if seconds is None else clock(seconds),
        "distinct": "{n_distinct} of {n_rows}".format_map(summaries) if summaries else "",
        "remark": failure_of(trial) or degenerate_note(summaries) or "",
        "best": any(trial.number == best.number for best in outcome.best),
    }


def _state(fate: Fate) -> str:
    return "failed" if fate is Fate.FAIL else fate.value.lower()


def _show(value: Any) -> str:
    """A value as short as a reader needs it; numbers with six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "-"
    if isinstance(value, str):
        return redact_url(value)
    return redact_url(json.dumps(value, ensure_ascii=False))

"""The files of a benchmark: everything in `benchmark.json`, a table, and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from hpo_summarize.benchmark.stock import stock_name
from hpo_summarize.benchmark.summary import (
    Record,
    curve,
    metrics,
    stock_faults,
    summarise,
    to_arrays,
    write_table,
)
from hpo_summarize.files import write_text
from hpo_summarize.recipe import Recipe
from hpo_summarize.results.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, Plot
from hpo_summarize.results.page import build_page, fill, plot_html

_COLORS = {"stock": GREY, "train_once": ORANGE, "joint": BLUE, "staged": GREEN, "unpruned": PURPLE}
_CLOCKS = {"wall": "seconds since the start of the search", "cpu": "CPU seconds"}
_BODY = """<h1>{{ title }}</h1>
<p class="hint">{{ machine }}</p>
{{ plot }}
<h2>Figures</h2>
<p class="hint">{{ hint }}</p>
<div class="table"><table>
<thead><tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
<h2>What the stock search did</h2>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
"""
_HINT = "Median over the seeds, and the lowest and highest in brackets."


def write_benchmark(recipe: Recipe, records: Sequence[Record], output_dir: Path) -> str:
    """Writes `benchmark.json`, `table.md` and `benchmark.html`.

    Args:
        recipe: Recipe of the benchmark.
        records: Records of all its runs.
        output_dir: Folder for the files.

    Returns:
        The table and what the stock search did, as Markdown.
    """
    objective = recipe.search.objectives[0]
    maximize = recipe.search.direction == "maximize"
    summary = summarise(records, objective, maximize)
    notes = _stock_notes(recipe, records)
    digits = {metric.title: metric.digits for metric in metrics(objective, maximize)}
    table = write_table(summary, digits)
    content = {
        "recipe": recipe.model_dump(mode="json"),
        "stock_cannot_search": _out_of_reach(recipe),
        "stock_notes": notes,
        "summary": summary,
        "runs": list(records),
    }
    write_text(output_dir / "benchmark.json", json.dumps(content, indent=1, allow_nan=False))
    text = "\n".join([table, "", *(f"- {note}" for note in notes)])
    write_text(output_dir / "table.md", text + "\n")
    page = _write_page(recipe, records, table, notes)
    write_text(output_dir / "benchmark.html", page)
    return text


def _out_of_reach(recipe: Recipe) -> list[str]:
    return [name for name in recipe.space if stock_name(name) is None]


def _stock_notes(recipe: Recipe, records: Sequence[Record]) -> list[str]:
    stock = [record for record in records if record["method"] == "stock"]
    if not stock:
        return []
    notes = [note for record in stock for note in stock_faults(record)]
    if missing := _out_of_reach(recipe):
        values = ", ".join(missing)
        notes.insert(0, f"it cannot search {values}, which are no training arguments")
    return notes


def _write_page(recipe: Recipe, records: Sequence[Record], table: str, notes: Sequence[str]) -> str:
    head, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")
    )
    title = f"Benchmark: {recipe.search.n_trials} trials, {len({r['seed'] for r in records})} seeds"
    plot = _draw_curves(records, recipe)
    machine = records[0]["machine"]
    body = fill(
        _BODY,
        title=title,
        machine=f"{machine['processor']}, one thread a search, {records[0]['date'][:10]}",
        plot=plot_html(plot),
        hint=_HINT,
        head=head,
        rows=rows,
        notes=notes,
    )
    return build_page(title, body, draws=True)


def _draw_curves(records: Sequence[Record], recipe: Recipe) -> Plot:
    """The best value so far over time, a line a run."""
    hint = "The best value so far of every search; each line is one seed."
    plot = Plot("best_so_far", "Best value so far", hint, side_by_side=False, min_width=600)
    for clock, axis in _CLOCKS.items():
        figure, named = go.Figure(), set[str]()
        for record in records:
            figure.add_trace(_line(record, clock, recipe, record["method"] not in named))
            named.add(record["method"])
        figure.update_xaxes(title=axis)
        figure.update_yaxes(title=recipe.search.objectives[0])
        plot.add(f"Over {axis}", figure)
    return plot


def _line(record: Record, clock: str, recipe: Recipe, first: bool) -> go.Scatter:
    points = curve(record, clock, recipe.search.direction == "maximize")
    x, y = to_arrays(points, record[f"{clock}_seconds"])
    method = record["method"]
    return go.Scatter(
        x=x,
        y=y,
        name=method,
        legendgroup=method,
        showlegend=first,
        mode="lines",
        line={"shape": "hv", "color": _COLORS[method]},
        hovertext=f"{method}, seed {record['seed']}",
    )

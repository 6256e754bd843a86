"""The files of a benchmark: everything in `benchmark.json`, a table, and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from benchmarking.stock import stock_name
from benchmarking.summary import (
    Record,
    curve,
    metrics,
    stock_faults,
    summarise,
    table_rows,
    to_arrays,
)
from benchmarking.winners import Winners

from hpo_summarize.config.schema import Recipe
from hpo_summarize.io import write_text
from hpo_summarize.reporting.page import Plot, build_page, fill, plot_html

# Title, hint, table with its header, and notes.
Section = tuple[str, str, list[list[str]], list[str]]
_COLORS = {
    "stock": "#697685",
    "train_once": "#e08a1e",
    "joint": "#2563a8",
    "staged": "#3a8f5c",
    "unpruned": "#7b4fa3",
}
_CLOCKS = {"wall": "seconds since the start of the search", "cpu": "CPU seconds"}
_BODY = """<h1>{{ title }}</h1>
<p class="hint">{{ machine }}</p>
{{ plot }}
{% for title, hint, table, notes in sections %}<h2>{{ title }}</h2>
<p class="hint">{{ hint }}</p>
<div class="table"><table>
<thead><tr>{% for name in table[0] %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endfor %}"""
_HINT = (
    "Median over the seeds, and the lowest and highest in brackets. Runs whose winner is not above "
    "the best constant summary are left out."
)
_WINNERS_HINT = (
    "What each winner writes for the test split, and the highest score of a text that is the "
    "summary of every dialogue: of a draw of training references and of what winners wrote."
)


def write_benchmark(recipe: Recipe, winners: Winners, output_dir: Path) -> str:
    """Writes `benchmark.json`, `table.md` and `benchmark.html`.

    Args:
        recipe: Recipe of the benchmark.
        winners: Records of all its runs, and which of them count.
        output_dir: Folder for the files.

    Returns:
        The tables and what the stock search did, as Markdown.
    """
    records = winners.records
    objective = recipe.search.objectives[0]
    maximize = recipe.search.direction == "maximize"
    summary = summarise(winners.counted, objective, maximize)
    notes = _stock_notes(recipe, records)
    digits = {metric.title: metric.digits for metric in metrics(objective, maximize)}
    figures = table_rows(summary, digits)
    content = {
        "recipe": recipe.model_dump(mode="json"),
        "stock_cannot_search": _out_of_reach(recipe),
        "stock_notes": notes,
        "summary": summary,
        "best_constant": vars(winners.constant),
        "winner_notes": winners.notes(),
        "runs": list(records),
    }
    write_text(output_dir / "benchmark.json", json.dumps(content, indent=1, allow_nan=False))
    sections = [("Winners", _WINNERS_HINT, winners.table(), winners.notes())]
    if winners.counted:
        sections.insert(0, ("Figures", _HINT, figures, notes))
    parts = [part for _, _, rows, said in sections for part in (_markdown(rows), _list(said))]
    text = "\n\n".join(part for part in parts if part)
    write_text(output_dir / "table.md", text + "\n")
    page = _write_page(recipe, winners, sections)
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


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    rule = ["---", *(["---:"] * (len(head) - 1))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *others))


def _list(notes: Sequence[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)


def _write_page(recipe: Recipe, winners: Winners, sections: Sequence[Section]) -> str:
    records = winners.records
    title = f"Benchmark: {recipe.search.n_trials} trials, {len({r['seed'] for r in records})} seeds"
    draws = bool(winners.counted)
    machine = records[0]["machine"]
    body = fill(
        _BODY,
        title=title,
        machine=f"{machine['processor']}, one thread a search, {records[0]['date'][:10]}",
        plot=plot_html(_draw_curves(winners.counted, recipe)) if draws else "",
        sections=sections,
    )
    return build_page(title, body, draws)


def _draw_curves(records: Sequence[Record], recipe: Recipe) -> Plot:
    """The best value so far over time, a line a run."""
    hint = "The best value so far of every search that is counted; each line is one seed."
    plot = Plot("best_so_far", "Best value so far", hint)
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

"""The files of a benchmark: everything in `benchmark.json`, a table, and a page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from benchmarking.stock import stock_name
from benchmarking.summary import Record, curve, stock_faults, summarise, table_rows
from benchmarking.winners import Winners

from hpo_summarize.config.schema import Recipe
from hpo_summarize.io import write_text

# Title, hint, table with its header, and notes.
Section = tuple[str, str, list[list[str]], list[str]]
_COLORS = {
    "stock": "#7f7f7f",
    "train_once": "#ff7f0e",
    "joint": "#1f77b4",
    "staged": "#2ca02c",
    "unpruned": "#9467bd",
}
_CLOCKS = {"wall": "seconds since the start of the search", "cpu": "CPU seconds"}
_HEAD = (
    '<!doctype html><html><head><meta charset="utf-8"><title>{title}</title><style>'
    "body {{font: 15px sans-serif; margin: 2em auto; max-width: 1100px}} "
    "td, th {{padding: 2px 10px; text-align: right}} td:first-child {{text-align: left}}"
    "</style></head><body><h1>{title}</h1><p>{machine}</p>"
)
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
    records, counted = winners.records, winners.counted
    maximize = recipe.search.direction == "maximize"
    summary = summarise(counted, recipe.search.objectives[0], maximize)
    unsearched = [name for name in recipe.space if stock_name(name) is None]
    notes = stock_faults(records)
    if notes and unsearched:
        values = ", ".join(unsearched)
        notes.insert(0, f"it cannot search {values}, which are no training arguments")
    content = {
        "recipe": recipe.model_dump(mode="json"),
        "stock_cannot_search": unsearched,
        "stock_notes": notes,
        "summary": summary,
        "best_constant": vars(winners.constant),
        "winner_notes": winners.notes(),
        "runs": list(records),
    }
    write_text(output_dir / "benchmark.json", json.dumps(content, indent=1, allow_nan=False))
    sections = [("Winners", _WINNERS_HINT, winners.table(), winners.notes())]
    if counted:
        sections.insert(0, ("Figures", _HINT, table_rows(summary), notes))
    text = "\n\n".join(_markdown(rows, notes) for _, _, rows, notes in sections)
    write_text(output_dir / "table.md", text + "\n")
    write_text(output_dir / "benchmark.html", _page(recipe, winners, sections))
    return text


def _markdown(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    head, *others = rows
    rule = ["---", *(["---:"] * (len(head) - 1))]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *others)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]).strip()


def _page(recipe: Recipe, winners: Winners, sections: Sequence[Section]) -> str:
    first, n_seeds = winners.records[0], len({record["seed"] for record in winners.records})
    title = f"Benchmark: {recipe.search.n_trials} trials, {n_seeds} seeds"
    machine = f"{first['machine']['processor']}, one thread a search, {first['date'][:10]}"
    parts = [_HEAD.format(title=html.escape(title), machine=html.escape(machine))]
    if winners.counted:
        for clock in _CLOCKS:
            figure = _draw_curves(winners.counted, clock, recipe)
            parts.append(figure.to_html(full_html=False, include_plotlyjs=clock == "wall"))
    for heading, hint, (head, *rows), notes in sections:
        parts.append(f"<h2>{heading}</h2><p>{html.escape(hint)}</p>")
        parts.append(pd.DataFrame(rows, columns=head).to_html(index=False, border=0))
        parts += ["<ul>", *(f"<li>{html.escape(note)}</li>" for note in notes), "</ul>"]
    return "\n".join([*parts, "</body></html>\n"])


def _draw_curves(records: Sequence[Record], clock: str, recipe: Recipe) -> go.Figure:
    """The best value so far over time, a line a run."""
    figure, named = go.Figure(), set[str]()
    for record in records:
        method = record["method"]
        points = curve(record, clock, recipe.search.direction == "maximize")
        seconds, values = ([*column] for column in zip(*points))
        figure.add_scatter(
            x=[*seconds, record[f"{clock}_seconds"]],  # Drawn on to the end of the search.
            y=[*values, values[-1]],
            name=method,
            legendgroup=method,
            showlegend=method not in named,
            mode="lines",
            line={"shape": "hv", "color": _COLORS[method]},
            hovertext=f"{method}, seed {record['seed']}",
        )
        named.add(method)
    return figure.update_layout(
        title="Best value so far of every search that is counted",
        xaxis_title=_CLOCKS[clock],
        yaxis_title=recipe.search.objectives[0],
    )

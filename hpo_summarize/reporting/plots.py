"""The plots of a study, each as an HTML page that needs no network and no other file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jinja2
import optuna
import plotly.graph_objects as go
from markupsafe import Markup
from optuna.exceptions import ExperimentalWarning
from plotly.offline import get_plotlyjs

from hpo_summarize.io import write_text
from hpo_summarize.reporting import figures
from hpo_summarize.reporting import figures as parameter_figures
from hpo_summarize.reporting.figures import Plot
from hpo_summarize.reporting.outcome import Outcome, read_study
from hpo_summarize.reporting.sanitized import copy_study

# The policy lets a page load nothing from anywhere.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:;
 script-src 'unsafe-inline'; style-src 'unsafe-inline'; font-src data:">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff;
  max-width: 1200px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .3rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .2rem; }
h3 { font-size: 1rem; margin: 1rem 0 0; }
.hint { color: #566373; margin: 0 0 .5rem; }
.problem { background: #fff4e0; border-left: 4px solid #e08a1e; padding: .6rem 1rem;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.side { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.side > div { min-width: 0; }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.cards div { background: #f2f5f9; border-radius: 6px; padding: .5rem .9rem; }
.cards b { display: block; font-size: 1.3rem; line-height: 1.3; }
.long { max-height: 32rem; }
.table { overflow: auto; border: 1px solid #dde3ea; border-radius: 6px;
  width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #edf0f4; }
tbody th { min-width: 9.5rem; max-width: 45vw; overflow-wrap: anywhere; }
td.text { min-width: 14rem; overflow-wrap: anywhere; }
thead th { position: sticky; top: 0; background: #f2f5f9; }
.number { text-align: right; white-space: nowrap; }
.best td { background: #fdeeea; font-weight: 600; }
pre { background: #f2f5f9; border-radius: 6px; padding: 1rem; overflow: auto; font-size: .85rem; }
</style>
{% if script %}<script>{{ script }}</script>{% endif %}
</head>
<body>
{{ body }}
</body>
</html>
"""

_PLOT = """{% if plot.problem %}<p class="problem">{{ plot.problem }}</p>{% endif %}
{% if plot.figures %}<p class="hint">{{ plot.hint }}</p>{% endif %}
<div class="{{ 'side' if plot.side_by_side }}">
{% for heading, figure in figures %}<div>
{% if heading %}<h3>{{ heading }}</h3>{% endif %}
<div class="scroll"><div style="min-width: {{ plot.min_width }}px">{{ figure }}</div></div>
</div>
{% endfor %}</div>
"""

_ENVIRONMENT = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
_HEIGHT = "420px"
# Only these buttons: plotly has one that uploads the data of a figure, too.
_BUTTONS = [["toImage", "zoom2d", "pan2d", "resetScale2d"]]
_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "modeBarButtons": _BUTTONS,
}


def fill(template: str, **values: object) -> Markup:
    """Fills a Jinja template; every value that is not `Markup` is escaped."""
    return Markup(_ENVIRONMENT.from_string(template).render(**values))


def build_page(title: str, body: Markup, draws: bool) -> str:
    """A whole page.

    Args:
        title: Title of the browser's window.
        body: The content.
        draws: Whether plotly's script is needed (some 5 MB).
    """
    script = Markup(get_plotlyjs()) if draws else ""
    return str(fill(_PAGE, title=title, body=body, script=script))


def plot_html(plot: Plot) -> Markup:
    """The content of one plot, without its title: why it is missing, or how to read it and it."""
    figures = [
        (heading, _figure_html(figure, f"{plot.name}-{index}"))
        for index, (heading, figure) in enumerate(plot.figures)
    ]
    return fill(_PLOT, plot=plot, figures=figures)


def _figure_html(figure: go.Figure, element_id: str) -> Markup:
    # An id of our own: plotly's is random, and two pages of one study would differ.
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=element_id,
        default_height=_HEIGHT,
        config=_CONFIG,
    )
    return Markup(html)


_BODY = "<h1>{{ title }}</h1>\n{{ plot }}"


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
        body = fill(_BODY, title=title, plot=plot_html(plot))
        paths.append(output_dir / f"{plot.name}.html")
        write_text(paths[-1], build_page(title, body, draws=bool(plot.figures)))
    return paths


def draw_plots(outcome: Outcome) -> list[Plot]:
    """All plots of a study; those of a single value are drawn for each objective."""
    with _quiet():
        whole = copy_study(outcome, range(len(outcome.objectives)))
        singles = [(name, copy_study(outcome, [i])) for i, name in enumerate(outcome.objectives)]
        plots = [figures.draw_pareto_front(outcome, whole)] if outcome.several else []
        return plots + [
            figures.draw_history(outcome, singles),
            parameter_figures.draw_importances(outcome, singles),
            parameter_figures.draw_parallel_coordinate(outcome, singles),
            parameter_figures.draw_slice(outcome, singles),
            # A step of a decoding stage is a block of rows; a line over them shows nothing.
            *([] if outcome.is_decoding else [figures.draw_intermediate_values(outcome, whole)]),
            figures.draw_timeline(outcome, whole),
        ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what Optuna says of the copies: that they are made, and are small or experimental."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)

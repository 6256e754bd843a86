"""HTML pages and the figures on them; a page needs no network and no other file."""

from __future__ import annotations

from dataclasses import dataclass, field

import jinja2
import plotly.graph_objects as go
import plotly.io
from markupsafe import Markup
from plotly.offline import get_plotlyjs

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
.cards { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.cards div { background: #f2f5f9; border-radius: 6px; padding: .5rem .9rem; }
.cards b { display: block; font-size: 1.3rem; line-height: 1.3; }
.long { max-height: 32rem; }
.long th:not(:last-child) { text-align: right; }
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
{% if figures %}<p class="hint">{{ plot.hint }}</p>{% endif %}
{% for heading, figure in figures %}{% if heading %}<h3>{{ heading }}</h3>{% endif %}
<div class="scroll">{{ figure }}</div>
{% endfor %}"""

_AXIS = {"automargin": True, "exponentformat": "power"}
# On plotly's grey: Optuna's color scales begin with nearly white.
TEMPLATE = plotly.io.templates.merge_templates(
    plotly.io.templates["plotly"],
    go.layout.Template(
        layout={
            "font": {"family": "system-ui, sans-serif", "size": 12},
            "colorway": ["#2563a8", "#c8321e", "#3a8f5c", "#e08a1e", "#7b4fa3", "#697685"],
            "margin": {"l": 48, "r": 48, "t": 48, "b": 8},
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
            "xaxis": _AXIS,
            "yaxis": _AXIS,
        },
        data={"scatter": [{"marker": {"size": 8}}]},
    ),
)
_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    # Only these buttons: plotly has one that uploads the data of a figure, too.
    "showSendToCloud": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}
_ENVIRONMENT = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)


@dataclass
class Plot:
    """One plot of a study: a page of its own, and a section of the report.

    Attributes:
        name: Name of the page's file without its suffix.
        title: Heading.
        hint: How to read it.
        problem: Why something is not drawn, for the reader.
        figures: What is drawn, each with a heading, which may be empty.
    """

    name: str
    title: str
    hint: str
    problem: str = ""
    figures: list[tuple[str, go.Figure]] = field(default_factory=list)

    def add(self, heading: str, figure: go.Figure) -> None:
        """Adds a figure in the shared template; the heading takes the place of its title."""
        figure.update_layout(template=TEMPLATE, title=None, plot_bgcolor=None)
        self.figures.append((heading, figure))


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
    """The content of one plot without its title: its hint and figures, or why there are none."""
    figures = [
        (
            heading,
            Markup(
                figure.to_html(
                    full_html=False,
                    include_plotlyjs=False,
                    div_id=f"{plot.name}-{index}",  # plotly's own is random.
                    default_height="420px",
                    config=_CONFIG,
                )
            ),
        )
        for index, (heading, figure) in enumerate(plot.figures)
    ]
    return fill(_PLOT, plot=plot, figures=figures)

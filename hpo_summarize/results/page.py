"""HTML pages that need nothing but themselves: no network, no other file."""

from __future__ import annotations

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hpo_summarize.results.figures import Plot

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

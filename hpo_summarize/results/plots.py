"""The plots of a study, each as a page that opens without a network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning

from hpo_summarize.files import write_text
from hpo_summarize.results import figures, parameter_figures
from hpo_summarize.results.drawable import copy_study
from hpo_summarize.results.figures import Plot
from hpo_summarize.results.outcome import Outcome, read_study
from hpo_summarize.results.page import build_page, fill, plot_html

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

from __future__ import annotations

import math
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from hpo_summarize.reporting.outcome import read_study
from hpo_summarize.reporting.page import Plot
from hpo_summarize.reporting.plots import draw_plots, write_plots
from hpo_summarize.reporting.report import write_report

CHROMIUM = shutil.which("chromium")
PAGES = [
    *("optimization_history", "param_importances", "parallel_coordinate", "slice"),
    *("intermediate_values", "timeline"),
]
HOSTILE = "<script>alert(1)</script>"
SECRET = "postgresql://me:s3cret@db/x?password=s3cret"

Values = Callable[[optuna.Trial], list[float]]


def one_value(trial: optuna.Trial) -> list[float]:
    rate = trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True)
    size = trial.suggest_categorical("batch_size", [8, 64, 16, 32])
    trial.suggest_categorical("scheduler_type", ["polynomial", "linear", "cosine"])
    if trial.suggest_categorical("do_sample", [True, False]):
        trial.suggest_float("temperature", 0.1, 1.0)
    return [0.4 - 0.02 * (math.log10(rate) + 5) ** 2 - size / 1000]


def two_values(trial: optuna.Trial) -> list[float]:
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
    return [x, -y]


def run_study(
    n_trials: int = 30,
    values: Values = one_value,
    directions: tuple[str, ...] = ("maximize",),
    name: str = "kobart",
    objectives: tuple[str, ...] = ("rougeL",),
) -> optuna.Study:
    """A study of complete, pruned (every 5th) and failed (every 7th) trials; none in one minute."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    study, timed = (
        optuna.create_study(study_name=name, directions=directions, sampler=sampler)
        for _ in range(2)
    )
    for number in range(n_trials):
        trial = study.ask()
        results, state = values(trial), TrialState.COMPLETE
        if len(directions) == 1:
            trial.report(results[0] / 2, 1)
            trial.report(results[0], 2)
            state = TrialState.PRUNED if number % 5 == 4 else state
        if number % 7 == 6:
            trial.set_user_attr("failure", f"OperationalError: {SECRET} {HOSTILE}")
            state = TrialState.PRUNED if len(directions) == 1 else TrialState.FAIL
        trial.set_user_attr("best_epoch", 2.0)
        study.tell(trial, results if state == TrialState.COMPLETE else None, state)
    for frozen in study.trials:  # Fixed times: fixed pages.
        frozen.datetime_start = datetime(2026, 1, 5, 9, frozen.number)
        frozen.datetime_complete = frozen.datetime_start + timedelta(minutes=1)
        timed.add_trial(frozen)
    timed.set_user_attr("objectives", list(objectives))
    return timed


def plots_of(study: optuna.Study) -> dict[str, Plot]:
    return {plot.name: plot for plot in draw_plots(read_study(study))}


def read_pages(paths: list[Path]) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    return run_study()


@pytest.fixture(scope="module")
def plots(study: optuna.Study) -> dict[str, Plot]:
    return plots_of(study)


@pytest.fixture(scope="module")
def folder(study: optuna.Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "plots"
    paths = write_plots(study, folder)
    assert [path.stem for path in paths] == PAGES
    assert write_report(study, folder, "n_trials: 30") == folder / "report.html"
    assert sorted(path.stem for path in folder.iterdir()) == sorted([*PAGES, "report"])
    return folder


def test_every_page_has_all_it_needs_inside_and_only_once(folder: Path) -> None:
    for path in folder.iterdir():
        page = path.read_text(encoding="utf-8")
        assert page.count("plotly.js v") == 1, path.name
        assert "kobart</title>" in page[: page.index("<script>")]
        assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)
        assert "default-src 'none'" in page


@pytest.mark.slow
def test_the_same_study_gives_the_same_pages(study: optuna.Study, tmp_path: Path) -> None:
    first = read_pages([*write_plots(study, tmp_path), write_report(study, tmp_path)])
    assert first == read_pages([*write_plots(study, tmp_path), write_report(study, tmp_path)])


def test_the_history_shows_complete_trials_and_the_best_so_far(
    study: optuna.Study, plots: dict[str, Plot]
) -> None:
    [(_, figure)] = plots["optimization_history"].figures
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert list(figure.data[0].x) == [trial.number for trial in complete]
    assert figure.data[1].y[-1] == study.best_value
    assert figure.layout.yaxis.title.text == "rougeL"


def test_all_figures_share_one_template(plots: dict[str, Plot]) -> None:
    layouts = [figure.layout for plot in plots.values() for _, figure in plot.figures]
    assert len(layouts) == 6
    assert all(layout.template == layouts[0].template for layout in layouts)
    assert all(layout.title.text is None and layout.plot_bgcolor is None for layout in layouts)


def test_failed_trials_are_not_drawn_as_pruned_ones(plots: dict[str, Plot]) -> None:
    [(_, values)] = plots["intermediate_values"].figures
    shown = {int(trace.name.removeprefix("Trial")) for trace in values.data}
    assert shown == {number for number in range(30) if number % 7 != 6}
    assert values.layout.xaxis.title.text == "Epoch"
    [(_, timeline)] = plots["timeline"].figures
    bars = {trace.name: list(trace.y) for trace in timeline.data}
    assert bars["FAIL"] == [6, 13, 20, 27] and bars["PRUNED"] == [4, 9, 14, 19, 24, 29]


def test_the_timeline_counts_an_interrupted_trial_as_failed_and_leaves_queued_ones_out() -> None:
    study = run_study(2)
    trial = study.ask()
    trial.set_user_attr("interrupted", True)
    study.tell(trial, state=TrialState.FAIL)
    study.enqueue_trial({"learning_rate": 1e-5})
    timeline = plots_of(study)["timeline"]
    assert [trace.name for trace in timeline.figures[0][1].data] == ["COMPLETE", "FAIL"]
    assert "FAIL: failed or interrupted" in timeline.hint


def test_the_slices_have_log_axes_where_the_space_has_them(plots: dict[str, Plot]) -> None:
    [(_, figure)] = plots["slice"].figures
    axes = {axis.title.text: axis for axis in figure.select_xaxes()}
    names = ["batch_size", "do_sample", "learning_rate", "scheduler_type", "temperature"]
    assert sorted(axes) == names
    assert axes["learning_rate"].type == "log" and axes["temperature"].type is None


def test_each_of_several_objectives_is_drawn_in_its_own_direction() -> None:
    study = run_study(40, two_values, ("maximize", "minimize"), objectives=("gain", "cost"))
    plots = plots_of(study)
    assert list(plots) == ["pareto_front", *PAGES]
    for name in ("optimization_history", "param_importances", "parallel_coordinate"):
        assert [heading for heading, _ in plots[name].figures] == ["gain", "cost"]
    history = [figure.data[1].y[-1] for _, figure in plots["optimization_history"].figures]
    assert history == [max(t.values[0] for t in study.best_trials)] + [
        min(t.values[1] for t in study.best_trials)
    ]
    most = [figure.data[0].y[-1] for _, figure in plots["param_importances"].figures]
    assert most == ["x", "y"]
    assert "several objectives" in plots["intermediate_values"].problem


def test_the_pareto_front_shows_every_pair_of_objectives() -> None:
    study = run_study(
        20,
        lambda trial: [*two_values(trial), trial.number % 3],
        ("maximize",) * 3,
        objectives=("rouge1", "rouge2", "rougeL"),
    )
    figures = [figure for _, figure in plots_of(study)["pareto_front"].figures]
    axes = [(f.layout.xaxis.title.text, f.layout.yaxis.title.text) for f in figures]
    assert axes == [("rouge1", "rouge2"), ("rouge1", "rougeL"), ("rouge2", "rougeL")]
    front = {(trial.values[0], trial.values[1]) for trial in study.best_trials}
    assert set(zip(figures[0].data[1].x, figures[0].data[1].y, strict=True)) == front


@pytest.mark.parametrize(
    "n_trials, values, name, problem",
    [
        (0, one_value, "optimization_history", "The study has no trial yet."),
        (0, one_value, "timeline", "No trial has started yet."),
        (0, one_value, "intermediate_values", "No trial has reported a value after an epoch."),
        (1, one_value, "param_importances", "all of them have the same value"),
        (4, lambda t: [0.0 * t.suggest_float("x", 0, 1)], "param_importances", "the same value"),
        (4, lambda t: [t.number], "slice", "have no hyperparameters"),
        (4, lambda t: [t.number], "parallel_coordinate", "have no hyperparameters"),
    ],
)
def test_a_plot_that_cannot_be_drawn_says_why(
    n_trials: int, values: Values, name: str, problem: str, tmp_path: Path
) -> None:
    study = run_study(n_trials, values)
    pages = read_pages(write_plots(study, tmp_path))
    assert list(pages) == PAGES
    assert problem in pages[name] and "plotly.js v" not in pages[name]


def test_a_study_that_only_failed_says_why_on_every_page(tmp_path: Path) -> None:
    study = run_study(0, name=HOSTILE)
    trial = study.ask()
    trial.set_user_attr("failure", "out of memory")
    study.tell(trial, state=TrialState.PRUNED)
    pages = read_pages([*write_plots(study, tmp_path), write_report(study, tmp_path)])
    for name in ("optimization_history", "param_importances", "parallel_coordinate", "slice"):
        assert "1 failed. Reasons of the failures: out of memory (1)" in pages[name]
    assert pages["report"].count("Reasons of the failures: out of memory (1)") == 1


@pytest.mark.slow
def test_names_and_texts_are_escaped_and_passwords_hidden(tmp_path: Path) -> None:
    def values(trial: optuna.Trial) -> list[float]:
        trial.suggest_categorical(f"choice{HOSTILE}", [f"a{HOSTILE}", SECRET])
        return [trial.suggest_float(f"rate{HOSTILE}", 0, 1)] * 2

    study = run_study(10, values, ("maximize",) * 2, HOSTILE, (f"gain{HOSTILE}", SECRET))
    paths = [*write_plots(study, tmp_path), write_report(study, tmp_path, f"{HOSTILE} {SECRET}")]
    pages = read_pages(paths)
    assert len(pages) == 8
    for page in pages.values():
        assert "s3cret" not in page and "<script>alert" not in page.lower()
        assert "&lt;script&gt;alert(1)&lt;/script&gt;</title>" in page
    # Escaped in the figures, too, as plotly would take it for HTML.
    assert "rate&lt;script" in pages["slice"]


@pytest.mark.parametrize("values, n_objectives", [(one_value, 1), (two_values, 2)])
def test_plots_warn_of_nothing_and_leave_filters_and_logging_alone(
    values: Values, n_objectives: int, capsys: pytest.CaptureFixture[str]
) -> None:
    study = run_study(
        25, values, ("maximize",) * n_objectives, objectives=("a", "b")[:n_objectives]
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optuna.logging.set_verbosity(optuna.logging.INFO)
        before = list(warnings.filters)
        capsys.readouterr()
        draw_plots(read_study(study))
        assert warnings.filters == before
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert [warning.message for warning in caught] == []
    assert capsys.readouterr().err == ""


def test_the_report_shows_the_result_the_trials_and_the_recipe(
    study: optuna.Study, folder: Path
) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    text = re.sub(
        r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<script.*?</script>", "", page))
    )
    best = study.best_trial
    assert f"best rougeL {best.value:.6g} trial {best.number} epoch 2 complete 20" in text
    assert "pruned 6 failed 4 time in trials 0:30:00" in text
    assert f"learning_rate {best.params['learning_rate']:.6g}" in text
    assert "6 failed 0:01:00 OperationalError: postgresql://me:***@db/x?password=***" in text
    assert "Recipe n_trials: 30" in text
    assert page.count('class="plotly-graph-div"') == 6


def test_the_report_lists_the_pareto_front(tmp_path: Path) -> None:
    study = run_study(12, two_values, ("maximize",) * 2, objectives=("gain", "thrift"))
    page = write_report(study, tmp_path).read_text(encoding="utf-8")
    body = page[page.index("<body>") : page.index("plotly-graph-div")]
    assert f"trials on the Pareto front<b>{len(study.best_trials)}</b>" in body
    for trial in study.best_trials:
        assert body.count(f">{trial.values[0]:.6g}</td>") == 3  # Value and x; trial.
    assert "<h2>Recipe" not in page


def open_page(path: Path, profile: Path) -> tuple[str, str]:
    """The document after its scripts ran, and what they wrote to the console; without a network."""
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = [
        *(str(CHROMIUM), *options.split(), "--disable-component-update", "--disable-sync"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"),
        *("--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={profile}"),
        *("--dump-dom", path.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium to open the pages")
def test_a_browser_without_a_network_draws_the_plots(folder: Path, tmp_path: Path) -> None:
    # The report has every figure; a page takes a browser two seconds.
    expected = {"report": 6, "slice": 1, "optimization_history": 1, "parallel_coordinate": 1}
    with ThreadPoolExecutor(2) as pool:
        opened = list(pool.map(lambda n: open_page(folder / f"{n}.html", tmp_path / n), expected))
    for name, (document, console) in zip(expected, opened, strict=True):
        assert console == "", f"{name}: {console}"
        body = document[document.index("<body>") :]
        assert body.count('class="plot-container plotly"') == expected[name]
        assert body.count('class="main-svg"') >= 2 * expected[name]
        buttons = set(re.findall(r'data-title="([^"]+)"', body))
        assert len(buttons) == 4, buttons  # None of them sends the data anywhere.

"""decode: staged: training first with cheap decoding, then decoding alone on the best models."""

from __future__ import annotations

import csv
import functools
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import torch
from recipe_files import BASE, load, messages
from search_process import SEARCH, end_of, start_group, start_search
from test_model_from_config import SIZES
from transformers import BartForConditionalGeneration, TrainerCallback

from hpo_summarize import OptunaOptimizer
from hpo_summarize.console import print_training_plan
from hpo_summarize.errors import RecipeError, StudyError
from hpo_summarize.final_model.kept import load_kept
from hpo_summarize.final_model.retrain import Retraining
from hpo_summarize.final_model.select import BEST_PARAMS, choose_candidates
from hpo_summarize.stages import Decoder, DecodingSearch, shuffled_blocks
from hpo_summarize.study.storage import build_storage
from hpo_summarize.study.user_attrs import BEST_EPOCH, N_DECODED, SUMMARIES, TRAINED_TRIAL, VALUES
from hpo_summarize.summarizer import Summarizer, summarize_all
from hpo_summarize.training.runner import load_trial

SPACE = {
    "learning_rate": {"type": "float", "low": 1e-3, "high": 3e-2, "log": True},
    "lora_r": {"type": "categorical", "choices": [2, 4]},
    "num_beams": {"type": "categorical", "choices": [1, 2, 4]},
    "length_penalty": {"type": "float", "low": 0.5, "high": 2.0},
}
SMALL = {
    **SIZES["bart"],
    "model_type": "bart",
    "vocab_size": 400,
    "max_position_embeddings": 128,
}
Make = Callable[..., OptunaOptimizer]


def build(
    checkpoint: Path,
    csv: Path,
    out: Path,
    n_trials: int = 3,
    n_decoding: int = 5,
    model: Any = None,
    space: Any = None,
    beams: int = 4,
    **search: Any,
) -> OptunaOptimizer:
    staged = {"n_models": 2, "n_trials": n_decoding}
    fixed = {"n_trials": n_trials, "pruner": {"name": "median"}, "study_name": "s"}
    recipe = {
        "model": model or {"name": str(checkpoint)},
        "lora": {"r": 4, "alpha": 8},
        "data": {
            "train": str(csv),
            "validation_fraction": 0.75,
            "max_dialogue_tokens": 100,
            "max_summary_tokens": 30,
        },
        "training": {"num_epochs": 2, "batch_size": 4, "learning_rate": 1e-2},
        "generation": {"num_beams": beams, "max_new_tokens": 12},
        "search": {**fixed, "decode": "staged", "staged": staged, **search},
        "space": space or SPACE,
        "output_dir": str(out),
    }
    return OptunaOptimizer(recipe)


@pytest.fixture
def make_optimizer(checkpoint: Path, csv_path: Path, tmp_path: Path) -> Make:
    return functools.partial(build, checkpoint, csv_path, tmp_path / "out")


@pytest.fixture(scope="module")
def finished(
    checkpoint: Path, csv_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> OptunaOptimizer:
    """A search that has gone through both stages; to be read only."""
    optimizer = build(checkpoint, csv_path, tmp_path_factory.mktemp("staged") / "out")
    optimizer.optimize()
    return optimizer


def second_study(optimizer: OptunaOptimizer) -> optuna.Study:
    storage = build_storage(f"sqlite:///{optimizer.output_dir / 'study.db'}")
    (name,) = [n for n in optuna.get_all_study_names(storage) if n.startswith("s.decoding.")]
    return optuna.load_study(study_name=name, storage=storage)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_the_first_stage_trains_with_cheap_decoding_and_the_second_searches_the_rest(
    finished: OptunaOptimizer,
) -> None:
    first, second = finished.study.trials, second_study(finished).trials
    assert len(first) == 3
    assert all(set(trial.params) == {"learning_rate", "lora_r"} for trial in first)
    assert len(second) == 5
    assert all(
        trial.params.keys() <= {"num_beams", "length_penalty", TRAINED_TRIAL} for trial in second
    )
    best = sorted(first, key=lambda trial: -trial.value)[:2]
    assert [trial.params[TRAINED_TRIAL] for trial in second[:2]] == [t.number for t in best]
    assert [trial.params["num_beams"] for trial in second[:2]] == [4, 4], "the recipe's own"


@pytest.mark.slow
def test_both_stages_share_one_engine_however_many_trials_there_are(
    make_optimizer: Make,
) -> None:
    engines: set[sqlalchemy.Engine] = set()

    def note(connection: sqlalchemy.Connection, *_: Any) -> None:
        engines.add(connection.engine)

    optimizer = make_optimizer(n_trials=2, n_decoding=3)
    optimizer.prepare()
    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    try:
        optimizer.optimize()
        optimizer.get_best_value()
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)
    assert len(engines) == 1
    assert (len(optimizer.study.trials), len(second_study(optimizer).trials)) == (2, 3)


def test_the_best_parameters_are_those_of_both_stages(finished: OptunaOptimizer) -> None:
    content = read_json(finished.output_dir / "best_params.json")
    best = second_study(finished).best_trial
    trained = finished.study.trials[best.user_attrs[TRAINED_TRIAL]]
    assert content["best_value"] == best.value == finished.get_best_value()
    assert content["best_trial_number"] == trained.number
    assert content["best_epoch"] == trained.user_attrs[BEST_EPOCH]
    decoding = {k: v for k, v in best.params.items() if k != TRAINED_TRIAL}
    assert content["best_params"] == trained.params | decoding == finished.get_best_params()
    assert (content["n_trials"], content["n_decoding_trials"]) == (3, 5)
    stats = read_json(finished.output_dir / "study_stats.json")
    assert stats["best_value"] == stats["decoding"]["best_value"] == best.value
    assert stats["decoding"]["n_trials"] == 5


def test_a_value_of_the_second_stage_is_that_of_the_kept_weights(finished: OptunaOptimizer) -> None:
    best = second_study(finished).best_trial
    trained = finished.study.trials[best.user_attrs[TRAINED_TRIAL]]
    folder = finished.output_dir / "trials" / "s" / f"trial-{trained.number}"
    (checkpoint,) = folder.glob("checkpoint-*")
    load_trial(finished.trainer, trained.params, checkpoint)
    decoding = {k: v for k, v in best.params.items() if k != TRAINED_TRIAL}
    rows = finished.trainer.eval_dataset.remove_columns("labels")
    ids = finished.trainer.predict(rows, **decoding).predictions
    summaries = finished.experiment.decode(ids)
    references = finished.experiment.splits[1].references
    scores = finished.experiment.score(summaries, references)
    assert best.value == pytest.approx(scores["rougeL"], abs=1e-12)


def test_a_trial_of_the_second_stage_counts_the_summaries_that_it_has_decoded(
    finished: OptunaOptimizer,
) -> None:
    n_rows = len(finished.experiment.splits[1])
    for trial in second_study(finished).trials:
        counted = trial.user_attrs[SUMMARIES]
        assert counted["n_rows"] == trial.user_attrs.get(N_DECODED, n_rows)
        assert 1 <= counted["n_distinct"] <= n_rows and len(counted["examples"]) <= 2
    best = second_study(finished).best_trial.user_attrs[SUMMARIES]
    assert read_json(finished.output_dir / "best_params.json")["summaries"] == best


def test_files_and_pages_show_both_stages(finished: OptunaOptimizer) -> None:
    folder = finished.output_dir
    with (folder / "decoding_trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == [0, 1, 2, 3, 4]
    assert {"params_learning_rate", "params_num_beams", "trained_trial"} <= set(rows[0])
    assert not [column for column in rows[0] if column.startswith("epoch_")]
    assert (folder / "decoding" / "optimization_history.html").exists()
    report = (folder / "report.html").read_text()
    assert "Trials: decoding" in report
    assert "Optimization history: decoding" in report
    first, second = re.findall(r"<h2>Trials.*?</table>", report, re.DOTALL)
    assert "trained trial" not in first and "<th>trained trial</th>" in second
    cells = re.findall(r'<td class="number">(\d+)</td>\s*<td class="number">(\d+)</td>', second)
    assert cells == [(row["number"], row["trained_trial"]) for row in rows]
    drawn = re.findall(r'<div id="([^"]+)" class="plotly-graph-div"', report)
    assert len(drawn) == len(set(drawn)) >= 9, "each plot has a place of its own"
    kept = {path.name for path in (folder / "trials" / "s").iterdir()}
    assert kept == {f"trial-{number}" for number in {int(row["trained_trial"]) for row in rows}}


def test_every_row_of_a_small_split_has_its_place_in_every_trial(finished: OptunaOptimizer) -> None:
    rows = len(finished.experiment.splits[1])
    complete = [t for t in second_study(finished).trials if t.state.name == "COMPLETE"]
    assert all(sorted(trial.intermediate_values) == list(range(rows)) for trial in complete)
    for trial in complete:
        assert sum(trial.intermediate_values.values()) / rows == pytest.approx(trial.value)


@pytest.mark.parametrize(("n_rows", "n_blocks"), [(1, 1), (24, 24), (50, 50), (51, 26), (500, 50)])
def test_blocks_hold_every_row_once_and_are_the_same_for_a_seed(n_rows: int, n_blocks: int) -> None:
    blocks = shuffled_blocks(n_rows, seed=3)
    assert len(blocks) == n_blocks
    assert sorted(row for block in blocks for row in block) == list(range(n_rows))
    assert blocks == shuffled_blocks(n_rows, seed=3)


@pytest.mark.slow
def test_a_decoding_that_is_worse_on_the_first_rows_is_pruned(make_optimizer: Make) -> None:
    optimizer = make_optimizer(n_trials=2, n_decoding=4)
    optimizer.optimize()
    study = second_study(optimizer)
    rows = len(optimizer.experiment.splits[1])
    good = optuna.trial.create_trial(
        value=0.95,
        params=study.trials[0].params,
        distributions=study.trials[0].distributions,
        intermediate_values={place: 0.95 for place in range(rows)},
        user_attrs={VALUES: {}, BEST_EPOCH: 1, TRAINED_TRIAL: 0},
    )
    study.add_trial(good)
    again = make_optimizer(n_trials=2, n_decoding=6)
    again.optimize()
    last = second_study(again).trials[-1]
    assert last.state.name == "PRUNED"
    assert 0 < last.user_attrs[N_DECODED] < rows


@pytest.mark.slow
def test_the_same_command_goes_on_in_the_second_stage(make_optimizer: Make) -> None:
    make_optimizer(n_decoding=3).optimize()
    before = second_study(make_optimizer()).trials
    make_optimizer(n_decoding=5).optimize()
    after = second_study(make_optimizer()).trials
    assert len(after) == 5
    assert [trial.values for trial in after[:3]] == [trial.values for trial in before]


@pytest.mark.slow
def test_known_good_points_are_tried_by_the_stage_that_they_belong_to(make_optimizer: Make) -> None:
    points = [{"learning_rate": 2e-3, "num_beams": 2}, {"length_penalty": 2.0}]
    optimizer = make_optimizer(n_trials=2, n_decoding=6, pruner=None, baselines=points)
    optimizer.optimize()
    assert [t.params["learning_rate"] for t in optimizer.study.trials] == [1e-2, 2e-3]
    second = second_study(optimizer).trials
    assert [trial.params["num_beams"] for trial in second] == [4, 4, 2, 2, 4, 4]
    assert [trial.params["length_penalty"] for trial in second] == [1.0] * 4 + [2.0] * 2


@pytest.mark.slow
def test_the_second_stage_decodes_as_the_final_model_does(
    checkpoint: Path, make_optimizer: Make, tmp_path: Path
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    path = copy / "generation_config.json"
    beams = {"num_beams": 4, "length_penalty": 5.0, "early_stopping": "never"}
    path.write_text(json.dumps({**read_json(path), **beams}))
    space = {name: SPACE[name] for name in ("learning_rate", "num_beams")}
    search = {"n_trials": 1, "n_decoding": 2, "pruner": None, "baselines": [{"num_beams": 4}]}
    optimizer = make_optimizer(model={"name": str(copy)}, space=space, beams=1, **search)
    optimizer.optimize()
    one, four = second_study(optimizer).trials
    assert (one.params["num_beams"], four.params["num_beams"]) == (1, 4)
    (candidate,), _ = choose_candidates(optimizer.experiment, optimizer.output_dir / BEST_PARAMS)
    for trial in (one, four):
        decoded = replace(candidate, params={**candidate.params, **trial.params})
        assert value_of(load_kept(optimizer.experiment, decoded), optimizer) == trial.value
    own = load_kept(optimizer.experiment, decoded).model.generation_config
    assert (own.length_penalty, own.early_stopping) == (5.0, "never")


class Keeper(TrainerCallback):
    """Keeps the weights below the adapters of the model that was trained last."""

    def on_train_end(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights = below_adapters(model)


def below_adapters(model: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "lora_" not in k}


@pytest.mark.slow
def test_random_weights_below_an_adapter_are_those_that_it_was_trained_on(
    make_optimizer: Make,
) -> None:
    optimizer = make_optimizer(model={"from_config": SMALL}, n_trials=1, n_decoding=1, pruner=None)
    keeper = Keeper()
    optimizer.trainer.add_callback(keeper)
    optimizer.optimize()
    (candidate,), _ = choose_candidates(optimizer.experiment, optimizer.output_dir / BEST_PARAMS)
    kept = load_kept(OptunaOptimizer(optimizer.recipe).experiment, candidate).model
    for model in (optimizer.trainer.model, kept):
        loaded = below_adapters(model)
        assert loaded.keys() == keeper.weights.keys()
        assert all(torch.equal(loaded[name], keeper.weights[name]) for name in loaded)


def value_of(summarizer: Summarizer, optimizer: OptunaOptimizer) -> float:
    validation = optimizer.experiment.splits[1]
    summaries = summarize_all(summarizer, validation.dialogues).texts
    return optimizer.experiment.score(summaries, validation.references)["rougeL"]


@pytest.mark.slow
def test_several_objectives_end_in_a_pareto_front_of_the_second_stage(make_optimizer: Make) -> None:
    optimizer = make_optimizer(objective=["rouge1", "rougeL"], pruner=None)
    optimizer.optimize()
    content = read_json(optimizer.output_dir / "best_params.json")
    entry, *_ = content["pareto_front"]
    assert set(entry["values"]) == {"rouge1", "rougeL"}
    assert {"learning_rate", "num_beams"} <= set(entry["params"])
    second = second_study(optimizer)
    assert all(trial.state.name == "COMPLETE" for trial in second.trials)
    best = optuna.trial.create_trial(
        values=[0.95, 0.95],
        params=second.trials[0].params,
        distributions=second.trials[0].distributions,
        user_attrs={VALUES: {}, BEST_EPOCH: 1, TRAINED_TRIAL: 2},
    )
    second.add_trial(best)
    optimizer.plot_optimization_history(optimizer.output_dir)
    report = (optimizer.output_dir / "report.html").read_text()
    (row,) = re.findall(r"<tr><th>trial</th>(<td.*?)</tr>", report, re.DOTALL)
    assert re.findall(r"<td[^>]*>\s*(\d+)</td>", row) == ["2"], "as train.py --trial names it"


def front_entry(number: int, num_beams: int, *values: float) -> dict[str, Any]:
    decoding = {"num_beams": num_beams} | ({"length_penalty": 1.0} if num_beams > 1 else {})
    return {
        "number": number,
        "values": dict(zip(("rouge1", "rougeL"), values, strict=True)),
        "params": {"learning_rate": 0.01, "lora_r": 4, **decoding},
        "epoch": 1,
    }


def test_several_decodings_of_one_trained_trial_are_one_training(
    make_optimizer: Make, tmp_path: Path
) -> None:
    recipe = make_optimizer(objective=["rouge1", "rougeL"], pruner=None).recipe
    front = [front_entry(0, 1, 0.2, 0.5), front_entry(0, 4, 0.4, 0.3), front_entry(2, 2, 0.3, 0.4)]
    content = {"pareto_front": front, "objectives": ["rouge1", "rougeL"], "study_name": "s"}
    path = tmp_path / "front.json"
    path.write_text(json.dumps(content))
    (named,) = Retraining(recipe, str(path), trial=0).trainings
    assert (named.name, named.candidate.params["num_beams"]) == ("trial-0-seed-42", 4)
    best = Retraining(recipe, str(path), top=2).trainings
    assert [one.name for one in best] == ["trial-0-seed-42", "trial-2-seed-42"]
    with pytest.raises(StudyError, match="the 3 best trials are wanted, and .* has 2 to choose"):
        _ = Retraining(recipe, str(path), top=3).trainings


def test_every_trained_trial_can_be_made_a_final_model(
    finished: OptunaOptimizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one whose decodings were all pruned, and one that is no finalist."""
    out = Path(shutil.copytree(finished.output_dir, tmp_path / "out"))
    recipe = finished.recipe.model_copy(update={"output_dir": str(out)})
    trained = {trial.number: trial for trial in finished.study.trials}
    decoded = second_study(finished).trials
    best = max(decoded, key=lambda trial: trial.value or 0).user_attrs[TRAINED_TRIAL]
    pruned, other = sorted(set(trained) - {best}, key=lambda n: -(trained[n].value or 0))
    with sqlite3.connect(out / "study.db") as connection:
        for trial in decoded:
            if trial.user_attrs[TRAINED_TRIAL] == pruned:
                connection.execute(
                    "UPDATE trials SET state = 'PRUNED' WHERE trial_id = ?", (trial._trial_id,)
                )

    top = Retraining(recipe, top=3).candidates
    assert [one.number for one in top] == [best, pruned, other]
    assert [one.own_decoding for one in top] == [False, True, True]
    for one in top[1:]:
        assert one.params["num_beams"] == 4 and "length_penalty" in one.params
        assert one.params.items() >= trained[one.number].params.items()
        assert one.values == tuple(trained[one.number].values)
        named = Retraining(recipe, trial=one.number)
        assert named.candidates == [one]
        print_training_plan(named)
        assert f"{one.values[0]:.4f} in the first stage" in capsys.readouterr().out
    with pytest.raises(StudyError, match="the 4 best trials are wanted, and .* has 3 to choose"):
        _ = Retraining(recipe, top=4).candidates
    with pytest.raises(StudyError, match="trial 7 is not complete .* all_trials.csv .* COMPLETE$"):
        _ = Retraining(recipe, trial=7).candidates


def test_trials_are_those_of_the_study_beside_the_given_file(
    finished: OptunaOptimizer, tmp_path: Path
) -> None:
    path = finished.output_dir / BEST_PARAMS
    other = shutil.copytree(finished.output_dir, tmp_path / "other")
    optuna.delete_study(study_name="s", storage=f"sqlite:///{other / 'study.db'}")
    elsewhere = finished.recipe.model_copy(update={"output_dir": str(other)})
    here = [one.number for one in Retraining(finished.recipe, top=3).candidates]
    assert [one.number for one in Retraining(elsewhere, str(path), top=3).candidates] == here
    alone = Path(shutil.copy(path, tmp_path / "alone.json"))
    assert [c.number for c in Retraining(finished.recipe, str(alone), top=3).candidates] == here


STAGED = BASE + """
search: {decode: staged}
space:
  learning_rate: {type: float, low: 1e-5, high: 1e-3, log: true}
  num_beams: {type: categorical, choices: [1, 2, 4]}
"""


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("space={learning_rate: {type: float, low: 1.0, high: 2.0}}", "search.decode", "num_beams"),
        ("space={num_beams: {type: int, low: 1, high: 4}}", "search.decode", "learning_rate"),
        (
            "space.weight_decay={type: float, low: 0, high: 1, when: {num_beams: 4}}",
            "space.weight_decay.when.num_beams",
            "different stages",
        ),
        ("training.save_strategy=no", "training.save_strategy", "weights of the first"),
        ("search.staged.n_model=4", "search.staged.n_model", "did you mean 'n_models'"),
        ("search.decode=stagd", "search.decode", "did you mean 'staged'"),
        ("search.epoch_eval.samples=some", "search.epoch_eval.samples", "valid integer"),
    ],
)
def test_a_recipe_that_cannot_be_searched_in_stages_is_refused(
    override: str, key: str, message: str
) -> None:
    load(STAGED)
    with pytest.raises(RecipeError) as error:
        load(STAGED, override)
    assert message in messages(error)[key]


@pytest.mark.slow
def test_weights_that_are_not_here_are_said_to_be_missing(make_optimizer: Make) -> None:
    optimizer = make_optimizer(n_trials=1)
    optimizer.prepare()
    optimizer.study.tell(optimizer.study.ask(), 0.5)
    with pytest.raises(
        StudyError, match="has kept no weights of trial 0: .* run this where they are"
    ):
        optimizer.optimize()


@pytest.mark.slow
def test_the_weights_of_one_of_the_best_are_not_left_out_where_they_are_missing(
    make_optimizer: Make,
) -> None:
    optimizer = make_optimizer(n_trials=2, n_decoding=1)
    optimizer.optimize()
    shutil.rmtree(optimizer.output_dir / "trials" / "s" / "trial-1")
    again = make_optimizer(n_trials=2, n_decoding=2)
    with pytest.raises(StudyError, match="has kept no weights of trial 1: "):
        again.optimize()


@pytest.mark.slow
def test_a_final_model_is_not_made_before_the_second_stage_has_a_result(
    make_optimizer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    optimizer = make_optimizer(n_trials=1)
    monkeypatch.setattr(DecodingSearch, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.optimize()
    with pytest.raises(RecipeError, match="num_beams: the second stage, .* has finished no trial"):
        choose_candidates(optimizer.experiment, optimizer.output_dir / BEST_PARAMS)


@pytest.mark.slow
def test_the_second_stage_out_of_memory_takes_fewer_rows_at_once(
    make_optimizer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = make_optimizer(n_trials=1, n_decoding=2, pruner=None)
    generate, decode, rows = BartForConditionalGeneration.generate, Decoder.decode, []
    stage: list[Any] = []

    def decode_in_second_stage(*args: Any) -> Any:
        stage.append(args)
        return decode(*args)

    def narrow(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if stage:
            rows.append(len(input_ids))
            if len(input_ids) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(model, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(BartForConditionalGeneration, "generate", narrow)
    monkeypatch.setattr(Decoder, "decode", decode_in_second_stage)
    optimizer.optimize()
    second = second_study(optimizer)
    assert [trial.state.name for trial in second.trials] == ["COMPLETE"] * 2
    assert not [trial for trial in second.trials if "failure" in trial.user_attrs]
    assert 0 < sum(count > 3 for count in rows) <= 5, "from 32 at once to 2, and never back"


RECIPE = """
model: {{name: {checkpoint}}}
lora: {{r: 4, alpha: 8}}
data: {{train: {csv}, validation_fraction: 0.5, max_dialogue_tokens: 100, max_summary_tokens: 30}}
training: {{num_epochs: 2, batch_size: 8, learning_rate: 1e-2}}
generation: {{num_beams: 2, max_new_tokens: 12}}
search: {{n_trials: 2, pruner: null, parallel: ddp, decode: staged, staged: {{n_trials: 3}}}}
space:
  learning_rate: {{type: float, low: 1e-3, high: 1e-1, log: true}}
  num_beams: {{type: categorical, choices: [1, 2, 4]}}
output_dir: {output}
"""


@pytest.mark.slow
def test_two_processes_go_through_both_stages_together(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    values = []
    for processes in (1, 2):
        recipe, out = tmp_path / f"{processes}.yaml", tmp_path / f"out-{processes}"
        recipe.write_text(RECIPE.format(checkpoint=checkpoint, csv=csv_path, output=out))
        log = tmp_path / f"{processes}.log"
        start = [start_search(log, str(recipe))] if processes == 1 else None
        started = start or start_group(SEARCH, log, str(recipe))
        assert end_of(started) == [0] * processes, log.read_text()
        assert log.read_text().count("decoding   0 (1/3)") == 1
        with (out / "decoding_trials.csv").open() as file:
            values.append([float(row["value"] or "nan") for row in csv.DictReader(file)])
        assert read_json(out / "best_params.json")["n_decoding_trials"] == 3
    assert values[0] == pytest.approx(values[1], abs=1e-3)

"""The ROUGE metric as an object: no network, no files, what it keeps, and wrong input."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import pyarrow
import pytest

from hpo_summarize.rouge import MEASURES, Rouge, tokenizers

KOREAN = "미나는 내일 세 시에 도서관에서 준을 만난다"


def same(value: float) -> dict[str, float]:
    return dict.fromkeys(MEASURES, value)


def test_metric_needs_no_network_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    assert Rouge().compute(predictions=[KOREAN], references=[KOREAN]) == same(1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_at_once_work_offline_and_leave_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = (
        "import socket\n"
        "def refuse(*args): raise OSError('a connection was tried')\n"
        "socket.socket.connect = refuse\n"
        "from hpo_summarize.rouge import Rouge\n"
        "metrics = [Rouge() for _ in range(3)]\n"
        "for metric in metrics: metric.add(prediction='가 나', reference='가 다')\n"
        "print([metric.compute()['rouge1'] for metric in metrics])\n"
    )
    hidden = {"HF_HUB_OFFLINE", "HF_METRICS_CACHE"}
    settings = {key: value for key, value in os.environ.items() if key not in hidden}
    settings |= {"HF_HOME": str(tmp_path), "PYTHONUTF8": "1"}
    settings["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    here = Rouge()
    here.add(prediction="가 나", reference="가 다")
    command = [sys.executable, "-c", code]
    there = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)
    assert there.stdout.strip() == "[0.5, 0.5, 0.5]", there.stderr
    assert here.compute()["rouge1"] == 0.5
    assert list(tmp_path.rglob("*")) == []


def test_many_evaluations_keep_no_memory_but_the_references() -> None:
    metric = Rouge("unicode")
    held = []
    for number in range(6):
        texts = [f"{KOREAN} {number} {row}" for row in range(50)]
        metric.compute(predictions=texts, references=[KOREAN] * 50)
        held.append(pyarrow.total_allocated_bytes())
    assert len(set(held)) == 1 and metric.data is None and len(metric) == 0


def test_each_text_is_cut_into_tokens_once_with_identical_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    split_words = tokenizers.split_words

    def count(text: str) -> list[str]:
        seen.append(text)
        return split_words(text)

    monkeypatch.setattr(tokenizers, "split_words", count)
    metric = Rouge("unicode")
    rows = [["가 나 다", "나 다"], ["라 마 바 가", "바"]]
    first = metric.score_rows(["가 다", "마 바 가"], rows)
    assert sorted(seen) == sorted(["가 다", "마 바 가", *rows[0], *rows[1]])
    seen.clear()
    assert metric.score_rows(["가 다", "마 바 가"], rows) == first
    assert seen == ["가 다", "마 바 가"]
    seen.clear()
    same_predictions = metric.score_rows(["마 다", "마 다"], rows)
    assert seen == ["마 다"]  # As from a model that has learnt nothing yet.
    assert [row["rouge1"] for row in same_predictions] == pytest.approx([0.45, 1 / 6])


def test_copies_and_pickles_go_on_with_the_same_choice() -> None:
    metric = Rouge(references="max")
    scores = metric.compute(predictions=["가 나"], references=[["가", "다"]])
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert twin.tokenizer_name == "unicode"
        assert twin.compute(predictions=["가 나"], references=[["가", "다"]]) == scores


@pytest.mark.parametrize(
    "predictions, references, error, message",
    [
        (["a", "b"], ["a"], ValueError, "as many predictions as rows of references, got 2 and 1"),
        ([], [], ValueError, "nothing to score: got 0 rows"),
        (["a"], [[]], ValueError, r"references\[0\] must hold one or more texts; drop"),
        (["a"], [None], TypeError, r"references\[0\] must be text, got None \(NoneType\)"),
        (["a"], [["a", float("nan")]], TypeError, r"references\[0\] must be text, got nan \(float"),
        (["a", [5, 7]], ["a", "b"], TypeError, r"predictions\[1\] must be text, got \[5, 7\]"),
        ("a", ["a"], TypeError, "predictions must be a list with an entry for each row, got 'a'"),
        (["a"], "a", TypeError, "references must be a list with an entry for each row, got 'a'"),
        (["a"], None, TypeError, "references must be a list with an entry for each row, got None"),
        ({"a": "b"}, ["a"], TypeError, r"predictions must be a list .*, got \{'a': 'b'\}"),
        ({"a", "b"}, ["a", "b"], TypeError, r"predictions must be a list .*, got \{'a', 'b'\}"),
        (["a"], {"a": "b"}, TypeError, r"references must be a list .*, got \{'a': 'b'\}"),
        (
            ["a"],
            [{"summary": "a"}],
            TypeError,
            r"references\[0\] must be text, got \{'summary': 'a'",
        ),
        (["a"], [b"a"], TypeError, r"references\[0\] must be text, got b'a' \(bytes\)"),
        (["a"], ["b \ud800"], ValueError, r"references\[0\] must be valid Unicode .* character 2"),
    ],
)
def test_wrong_input_is_refused_and_leaves_nothing_behind(
    predictions: Any, references: Any, error: type[Exception], message: str
) -> None:
    metric = Rouge()
    with pytest.raises(error, match=message):
        metric.compute(predictions=predictions, references=references)
    with pytest.raises(error, match=message):
        metric.score_rows(predictions, references)
    assert metric.compute(predictions=["a b"], references=["a b"]) == same(1.0)


def test_compute_without_any_row_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to score: got 0 rows"):
        Rouge().compute()


def test_unknown_way_with_several_references_is_refused() -> None:
    with pytest.raises(ValueError, match="one of mean, max, got 'maxx'"):
        Rouge(references="maxx")

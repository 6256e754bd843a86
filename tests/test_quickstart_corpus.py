"""The quick start's committed corpus and checkpoint: what they promise, how they are made."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
from build_quickstart import write_csv
from conftest import REPOSITORY
from quickstart.denoising import IGNORED, add_noise, draw_batches, mask_spans
from quickstart.dialogues import (
    MAX_TURNS,
    SPEAKERS,
    Word,
    check_corpus,
    final_consonant,
    load_situations,
    pairs_of,
    write_corpus,
)
from quickstart.tokenizer import BOS, EOS, MASK, PAD
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

FOLDER = REPOSITORY / "recipes" / "quickstart"
SPLITS = {"train": 480, "validation": 72, "test": 72}
MAX_BYTES = 6_000_000


@pytest.fixture(scope="module")
def corpus():
    return write_corpus()


def read_rows(split):
    with (FOLDER / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def checkpoint():
    folder = FOLDER / "checkpoint"
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    return model, info, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("split", SPLITS)
def test_writing_a_split_again_gives_the_committed_bytes(split, corpus, tmp_path):
    path = tmp_path / f"{split}.csv"
    write_csv(path, corpus[split])
    assert path.read_bytes() == (FOLDER / path.name).read_bytes()


@pytest.mark.parametrize("split, n_rows", SPLITS.items())
def test_every_row_has_alternating_speakers_and_a_one_line_summary(split, n_rows):
    rows = read_rows(split)
    assert len(rows) == n_rows
    assert [row["fname"] for row in rows] == [f"{split}_{i}" for i in range(n_rows)]
    for row in rows:
        turns = row["dialogue"].split("\n")
        assert 5 <= len(turns) <= MAX_TURNS
        for number, turn in enumerate(turns):
            assert turn.startswith(f"{SPEAKERS[number % 2]}: ")
        assert row["summary"].endswith(".") and "\n" not in row["summary"]
        assert "{" not in row["dialogue"] + row["summary"]


def test_no_dialogue_stands_twice_in_the_corpus():
    dialogues = [row["dialogue"] for split in SPLITS for row in read_rows(split)]
    assert len(set(dialogues)) == sum(SPLITS.values())


def test_all_situations_and_their_outcomes_are_in_every_split(corpus):
    situations, _ = load_situations()
    assert len(situations) >= 20
    expected = {(s.name, outcome.name) for s in situations for outcome in s.outcomes}
    for dialogues in corpus.values():
        assert {(d.situation, d.outcome) for d in dialogues} == expected


def test_training_never_combines_what_a_held_out_dialogue_combines(corpus):
    trained = {(d.situation, *d.pair) for d in corpus["train"]}
    for dialogue in corpus["validation"] + corpus["test"]:
        first, second = dialogue.pair
        assert first in dialogue.text and second in dialogue.text
        together = [
            d
            for d in corpus["train"]
            if d.situation == dialogue.situation and d.pair == dialogue.pair
        ]
        assert not together
        assert any(s == dialogue.situation and a == first for s, a, _ in trained)
        assert any(s == dialogue.situation and b == second for s, _, b in trained)


def test_validation_and_test_share_no_pair():
    for situation in load_situations()[0]:
        splits = [set(pairs_of(situation, split)) for split in SPLITS]
        assert sum(map(len, splits)) == len(set.union(*splits))
        assert all(splits)


def test_a_changed_detail_is_summarised_as_it_was_in_the_end(corpus):
    moved = [d for d in corpus["train"] if (d.situation, d.outcome) == ("picnic", "rain")]
    assert len(moved) > 3
    for dialogue in moved:
        first_day = dialogue.text.index("요일") - 1
        final_day = dialogue.text.rindex("요일") - 1
        assert dialogue.text[first_day] != dialogue.text[final_day]
        assert dialogue.text[final_day : final_day + 3] in dialogue.summary


@pytest.mark.parametrize(
    "word, particles, expected",
    [
        ("가방", "을/를", "가방을"),
        ("모자", "을/를", "모자를"),
        ("서울", "으로/로", "서울로"),
        ("부산", "으로/로", "부산으로"),
        ("전주", "으로/로", "전주로"),
        ("지우", "이와/와", "지우와"),
        ("민준", "이와/와", "민준이와"),
        ("지갑", "", "지갑"),
    ],
)
def test_a_particle_follows_the_final_consonant(word, particles, expected):
    assert format(Word(word), particles) == expected


def test_a_particle_after_anything_but_hangul_is_refused():
    with pytest.raises(ValueError, match="ends in Hangul, got 'TV'; reword it"):
        final_consonant("TV")


def test_a_dialogue_in_two_splits_is_refused(corpus):
    with pytest.raises(ValueError, match="two places of the corpus"):
        check_corpus({**corpus, "test": corpus["train"][:1]})


def test_a_held_out_pair_that_is_trained_on_is_refused(corpus):
    leaked = dataclasses.replace(corpus["test"][0], pair=corpus["train"][0].pair)
    leaked = dataclasses.replace(leaked, situation=corpus["train"][0].situation)
    with pytest.raises(ValueError, match="held out but also trained on"):
        check_corpus({**corpus, "test": [leaked]})


def test_a_held_out_value_that_training_lacks_is_refused(corpus):
    unknown = dataclasses.replace(corpus["test"][0], pair=("고래", "상어"))
    with pytest.raises(ValueError, match="held out but never trained on"):
        check_corpus({**corpus, "test": [unknown]})


def test_a_held_out_value_that_is_not_said_is_refused(corpus):
    silent = dataclasses.replace(corpus["test"][0], text="#Person1#: 네.")
    with pytest.raises(ValueError, match="held out but not in the dialogue"):
        check_corpus({**corpus, "test": [silent]})


def test_the_quick_start_fits_in_six_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= MAX_BYTES
    assert (FOLDER / "checkpoint" / "model.safetensors").is_file()


def test_the_checkpoint_loads_whole_in_single_precision(checkpoint):
    model, info, tokenizer = checkpoint
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 1_000_000 <= model.num_parameters() <= 2_000_000
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.decoder_start_token_id == tokenizer.eos_token_id
    assert model.generation_config.forced_eos_token_id == tokenizer.eos_token_id


def test_decoding_gives_every_text_back_with_its_speakers(checkpoint):
    _, _, tokenizer = checkpoint
    for split in SPLITS:
        for row in read_rows(split):
            for text in (row["dialogue"], row["summary"]):
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.decode(ids, skip_special_tokens=True) == text
                assert len(ids) <= 256


def test_a_character_that_training_lacks_is_not_lost(checkpoint):
    _, _, tokenizer = checkpoint
    text = "#Person1#: 뷁! Café\n#Person2#는 웃어요 😀."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_noise_permutes_whole_turns_and_masks_spans():
    rng = np.random.default_rng(0)
    newline, turns = 9, [[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]]
    document = [token for turn in turns for token in [*turn, newline]][:-1]
    orders = set()
    for _ in range(50):
        noised = add_noise(document, newline, rng)
        assert MASK in noised
        kept = [token for token in noised if token not in (MASK, newline)]
        assert set(kept) < set(document) and len(kept) == len(set(kept))
        orders.add(tuple(dict.fromkeys(token // 10 for token in kept)))
    assert len(orders) > 3


def test_spans_mask_the_intended_share():
    rng = np.random.default_rng(0)
    document = list(range(10, 110))
    kept = [sum(token != MASK for token in mask_spans(document, rng)) for _ in range(50)]
    assert 83 <= sum(kept) / len(kept) <= 92


def test_pretraining_restores_a_document_from_nothing_but_itself():
    rng = np.random.default_rng(0)
    newline = 9
    documents = [[100 * n + k if k % 4 else newline for k in range(1, 16)] for n in range(1, 30)]
    batch = next(draw_batches(documents, newline, 16, rng))
    for noised, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist()):
        label = [token for token in labels if token != IGNORED]
        assert (label[0], label[-1]) == (BOS, EOS)
        assert set(noised) - {MASK, PAD, newline} <= set(label)
        assert len({token // 100 for token in label if token > 99}) == 1

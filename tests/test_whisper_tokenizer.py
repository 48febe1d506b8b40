"""Texts are cut as a Whisper writes them: with the merge that its file lacks, a space in front."""

from __future__ import annotations

import json
import shutil

import pytest

from mtp_jax.tokenizer import Tokenizer
from tests.pretrained import GOLDEN_WHISPER

TEXT = " the hand that held it, and the others' too"


@pytest.fixture
def folder(tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(GOLDEN_WHISPER, tmp_path / "whisper")


def without_merge(folder, place):
    """The tokenizer of a folder, after its file has lost a merge."""
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    del whole["model"]["merges"][place]
    file.write_text(json.dumps(whole))
    return Tokenizer.load(folder)


def test_a_lost_merge_is_found_again(folder):
    whole = Tokenizer.load(folder)
    for lost in range(len(whole.merges())):
        again = without_merge(folder, lost)
        assert again.merges() == whole.merges()
        assert again.encode(TEXT) == whole.encode(TEXT)
        shutil.copy(GOLDEN_WHISPER / "tokenizer.json", folder)


def test_the_file_is_written_whole(folder, tmp_path):
    again = without_merge(folder, 0)
    (tmp_path / "saved").mkdir()
    again.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").merges() == again.merges()


def test_a_whole_file_stays_as_it_is(folder):
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    assert len(Tokenizer.load(folder).merges()) == len(merges)


@pytest.mark.parametrize("text", ["the hand", "手", "", "é"])
def test_transcripts_are_cut_as_the_model_writes_them(text):
    tokenizer = Tokenizer.load(GOLDEN_WHISPER)
    tokens = tokenizer.encode_transcript(text)
    assert tokens == tokenizer.encode(text if text in ("", "手") else f" {text}")
    assert tokenizer.decode(tokens) == text

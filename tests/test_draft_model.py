"""A second recogniser drafts for the first: the text stays, and the calls of both are counted."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.checkpoints.workdir import WorkdirError
from mtp_jax.config import Config, FrontEnd
from mtp_jax.data import FeatureBatch, Source, Utterance
from mtp_jax.decoding import Auto, Greedy, PrefixBeam, Verify
from mtp_jax.evaluation.outcome import decode_source
from mtp_jax.evaluation.report import table
from mtp_jax.inference.draft_model import DraftModel, check_drafter
from mtp_jax.inference.fallback import rows_of, went_wrong
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.tokenizer.whisper_tokens import NO_TOKEN
from mtp_jax.transcription.batching import hand_out
from mtp_jax.transcription.recordings import Recording
from mtp_jax.transcription.transcriber import Transcriber
from tests.pretrained import GOLDEN_WHISPER as FOLDER
from tests.recordings import noise_batch
from tests.speech_llms import golden_runner

SAMPLES = [4800, 2500, 4000, 1000, 3000]
WIDTH = 4
WHISPER = "whisper"


BATCH = noise_batch(SAMPLES)


def alone(name: str, silence: float = 0.1) -> Runner:
    """A model without a drafter; programs of speech LLMs are shared."""
    if name != WHISPER:
        of = golden_runner(name)
        return Runner(of.model, of.params, of.tokenizer, of.mesh, of.imported)
    return load(open_model_folder(FOLDER), silence=silence)


def pair(target: str, drafter: str, silence: float = 0.1) -> Runner:
    runner = alone(target, silence)
    runner.drafter = DraftModel(alone(drafter, silence), runner, drafter)
    return runner


@pytest.fixture(scope="module")
def same():
    """A Whisper that drafts for itself."""
    return load(open_model_folder(FOLDER), silence=0.1, draft_model=FOLDER)


def texts(decoded):
    return [decoded.tokens[i, :n].tolist() for i, n in enumerate(np.asarray(decoded.length))]


def draft_texts(batch):
    return [batch.draft[i, :n].tolist() for i, n in enumerate(batch.draft_length)]


@pytest.mark.parametrize("name", [WHISPER, "voxtral", "granite_speech"])
def test_no_draft_changes_a_text(name):
    """Neither the right one, nor nonsense, nor none at all."""
    runner = alone(name, silence=30.0)
    greedy = runner.run(BATCH, Greedy(WIDTH)).decoded
    most = runner.model.config.data.max_tokens
    rng = np.random.default_rng(1)
    right = np.asarray(greedy.tokens)[:, :most]
    length = np.asarray(greedy.length) - (right == runner.tokenizer.eos).any(1)
    nonsense = rng.integers(0, runner.tokenizer.vocab_size, right.shape)
    some = np.where(rng.random(right.shape) < 0.2, nonsense, right)
    lengths = rng.integers(0, most + 1, len(right))
    found = {}
    for kind, draft, count in (
        *(("right", right, length), ("some", some, length), ("nonsense", nonsense, lengths)),
        ("nothing", right, np.zeros_like(length)),
    ):
        batch = BATCH._replace(draft=draft.astype(np.int32), draft_length=count.astype(np.int32))
        found[kind] = runner.run(batch, Verify(WIDTH)).decoded
        np.testing.assert_array_equal(found[kind].tokens, greedy.tokens)
        assert np.all(found[kind].calls <= greedy.calls)
    best = 1 + -(-(np.asarray(greedy.length) - 1) // WIDTH)
    np.testing.assert_array_equal(found["right"].calls, best)
    assert best.sum() < found["some"].calls.sum() < found["nothing"].calls.sum()


def test_a_model_that_drafts_for_itself_is_right(same):
    plain = alone(WHISPER)
    greedy = plain.run(BATCH, Greedy(WIDTH)).decoded
    done = same.run(BATCH, Verify(WIDTH))
    assert texts(done.decoded) == texts(greedy)
    drafted, calls = same.drafter.drafted(BATCH)
    np.testing.assert_array_equal(done.drafter_calls, calls)
    np.testing.assert_array_equal(calls, greedy.calls)  # it has nothing to draft by
    limit, right = plain.model.config.data.max_tokens, 0
    for row, (text, draft) in enumerate(zip(texts(greedy), draft_texts(drafted), strict=True)):
        if went_wrong(text, plain.tokenizer, limit):
            assert draft == []
        else:
            spelled = plain.tokenizer.encode(plain.tokenizer.decode(text[:-1]))
            right += draft == text[:-1]
            assert draft == text[:-1] or spelled != text[:-1]
            assert done.decoded.calls[row] <= greedy.calls[row]
    assert right
    assert int(done.decoded.calls.sum()) < int(greedy.calls.sum())
    assert done.decoded.proposed.shape == (len(SAMPLES), WIDTH - 1)


@pytest.mark.parametrize(
    ("target", "drafter"),
    [
        ("qwen3_asr", WHISPER),
        (WHISPER, "qwen3_asr"),
        pytest.param("voxtral", WHISPER, marks=pytest.mark.slow),
        pytest.param("granite_speech", "voxtral", marks=pytest.mark.slow),
    ],
)
def test_a_drafter_of_another_tokenizer_changes_no_text(target, drafter):
    runner = pair(target, drafter)
    greedy = runner.run(BATCH, Greedy(WIDTH))
    assert greedy.drafter_calls is None
    for strategy in (Verify(WIDTH), Auto(WIDTH)):
        done = runner.run(BATCH, strategy)
        assert texts(done.decoded) == texts(greedy.decoded)
        assert np.all(done.decoded.calls <= greedy.decoded.calls)
        assert np.all(np.asarray(done.drafter_calls) > 0)
    drafted, _ = runner.drafter.drafted(BATCH)
    assert drafted.draft.dtype == np.int32
    assert drafted.draft.shape == (len(SAMPLES), runner.model.config.data.max_tokens)


def test_a_batch_and_its_padding_change_nothing(same):
    """Each row has the drafts, text and calls that it has alone; filler has none."""
    strategy = Verify(WIDTH)
    filler = BATCH._replace(index=np.array([0, -1, 2, -1, 4], np.int32))
    whole, part = same.run(BATCH, strategy), same.run(filler, strategy)
    for row in range(len(SAMPLES)):
        if filler.index[row] < 0:
            assert part.decoded.calls[row] == part.drafter_calls[row] == 0
            continue
        single = same.run(rows_of(BATCH, [row], BATCH.audio.shape[1]), strategy)
        for done, at in ((part, row), (single, 0)):
            assert texts(done.decoded)[at] == texts(whole.decoded)[row]
            assert done.decoded.calls[at] == whole.decoded.calls[row]
            assert done.drafter_calls[at] == whole.drafter_calls[row]


def test_rows_that_fall_back_keep_their_drafts_and_count_all_calls():
    runner, plain = pair(WHISPER, WHISPER, silence=0.0), alone(WHISPER, silence=0.0)
    greedy, done = plain.run(BATCH, Greedy(WIDTH)).decoded, runner.run(BATCH, Verify(WIDTH))
    first = plain._run(plain._of_first_pass(BATCH, Greedy()), BATCH, Greedy(WIDTH), False).decoded
    again = np.asarray(greedy.calls) > np.asarray(first.calls)
    assert again.any() and not again.all()
    assert texts(done.decoded) == texts(greedy)
    assert np.all(done.decoded.calls <= greedy.calls)
    np.testing.assert_array_equal(done.drafter_calls, greedy.calls)
    lists = runner.run(BATCH, PrefixBeam(2, width=WIDTH, ctc_width=WIDTH)).decoded
    plain_lists = plain.run(BATCH, PrefixBeam(2, width=WIDTH)).decoded
    np.testing.assert_array_equal(lists.tokens, plain_lists.tokens)


def test_everything_is_compiled_beforehand():
    runner = pair(WHISPER, WHISPER, silence=0.0)
    strategy = Verify(WIDTH)
    assert not runner.is_compiled(BATCH, strategy)
    assert runner.compile(BATCH, strategy) > 0
    assert runner.is_compiled(BATCH, strategy) and not runner.is_compiled(BATCH, Greedy())
    for count in (1, 2, 4):
        runner.compile_fallback(rows_of(BATCH, range(count), BATCH.audio.shape[1]), strategy)
    one = rows_of(BATCH, [3], BATCH.audio.shape[1])
    runner.compile(one, strategy)
    before = runner.compile_seconds
    runner.run(one, strategy)
    assert runner.compile_seconds == before > runner.drafter.compile_seconds > 0


def test_the_drafter_is_told_what_the_model_was_told(same, tmp_path):
    """Language by its code, and the task; no row is drafted that the drafter cannot write."""
    special = same.model.vocabulary.whisper
    german = special.start_tokens("de")
    starts = [german, special.start_tokens(), special.start_tokens("fr", "translate")]
    batch = rows_of(BATCH, [0, 1, 2], 4800)
    batch = batch._replace(start=np.array([*starts, german], np.int32))
    np.testing.assert_array_equal(same.drafter._own_batch(batch).start, batch.start)

    shutil.copytree(FOLDER, tmp_path / "english")
    rules = json.loads((FOLDER / "generation_config.json").read_text())
    rules["is_multilingual"] = False
    (tmp_path / "english" / "generation_config.json").write_text(json.dumps(rules))
    english = load(open_model_folder(tmp_path / "english"), silence=0.1)
    drafter = DraftModel(english, same, "english")
    told = batch._replace(start=np.array([starts[0], special.start_tokens("en"), *starts[1:]]))
    assert drafter._own_batch(told).index.tolist() == [-1, 1, 2, -1]
    _, calls = drafter.drafted(told)
    assert (calls > 0).tolist() == [False, True, True, False]
    assert len(set(drafter._own_batch(told).start[0].tolist()) - {NO_TOKEN}) == 2
    # The other way round the drafter is told English.
    back = DraftModel(alone(WHISPER), english, "whisper")
    begun = back._own_batch(rows_of(BATCH, [0], 4800))
    assert begun.start.tolist() == [[*special.start_tokens("en")]]

    llm = golden_runner("qwen3_asr")
    drafter = DraftModel(alone(WHISPER), llm, "whisper")
    spoken = llm.model.vocabulary.speech
    for code, expected in (("de", "de"), ("", ""), ("ja", "")):  # of four languages
        one = rows_of(BATCH, [0], 4800)
        one = one._replace(start=np.array([spoken.start_tokens(code)], np.int32))
        assert tuple(drafter._own_batch(one).start[0]) == special.start_tokens(expected)


def test_a_speech_llm_that_was_told_no_language_writes_it_first():
    llm, whisper = golden_runner("qwen3_asr"), alone(WHISPER)
    writer = DraftModel(whisper, llm, "whisper")._writer
    reads, writes = whisper.tokenizer, llm.tokenizer
    special, spoken = whisper.model.vocabulary.whisper, dict(llm.model.vocabulary.speech.languages)
    said, before = [*reads.encode(" the and"), reads.eos], [*special.start_tokens("de")]
    assert writer.draft(said, before, "de") == writes.encode("the and")
    assert writer.draft(said, before, "") == [*spoken["de"], *writes.encode("the and")]
    assert writes.heading(writer.draft(said, before, ""))[1] == "de"
    assert writer.draft(said[:-1], before, "de") == []  # no end
    assert writer.draft([*reads.encode(" the and" * 40), reads.eos], before, "de") == []
    # What the other model writes before its text is no draft.
    writer = DraftModel(llm, whisper, "qwen3_asr")._writer
    said = [*spoken["fr"], *writes.encode("the and"), writes.eos]
    assert writer.draft(said, [], "") == reads.encode(" the and")


def test_times_are_drafted_between_two_whispers():
    timed = load(open_model_folder(FOLDER), silence=30.0, timestamps=True, draft_model=FOLDER)
    plain = load(open_model_folder(FOLDER), silence=30.0, timestamps=True)
    special, tokenizer = timed.model.vocabulary.whisper, timed.tokenizer
    first, text = special.first_time, tokenizer.encode(" the and")
    said = [first, *text, first + 9, first + 9, *text, first + 20]
    assert timed.drafter._writer.draft([*said, tokenizer.eos], [], "en") == said
    without = DraftModel(plain, alone(WHISPER), "timed")._writer
    assert without.draft([*said, tokenizer.eos], [], "en") == 2 * text
    greedy, done = plain.run(BATCH, Greedy(WIDTH)).decoded, timed.run(BATCH, Verify(WIDTH)).decoded
    assert texts(done) == texts(greedy)
    assert np.all(done.calls <= greedy.calls)


def test_what_it_does_not_hear_it_does_not_draft(same):
    """Features of another encoder, and audio beyond its window."""
    features = FeatureBatch(*BATCH._replace(audio=np.zeros((len(SAMPLES), 20, 16), np.float16)))
    drafted, calls = same.drafter.drafted(features)
    assert not drafted.draft_length.any() and not calls.any()
    assert same.drafter.is_compiled(features) and same.drafter.compile(features) == 0
    longer = noise_batch([20_000, 3000])
    cut = same.drafter._own_batch(longer)
    assert cut.audio.shape[1] == cut.audio_length[0] == same.drafter._longest < 20_000
    assert cut.audio_length[1] == 3000


def test_transcripts_count_the_calls_of_both(same):
    model, plain = Transcriber(same, batch_size=4), Transcriber(alone(WHISPER), batch_size=4)
    assert {"verify_ctc", "prefix_beam_ctc"} <= {*model.strategies} - {*plain.strategies}
    assert "ctc" not in model.strategies
    chunk = Chunk(0.0, BATCH.audio[0, :4800], 0.3)

    def transcript(of, strategy="auto"):
        (segment,) = of.decode([chunk], strategy)
        recording = Recording()
        recording.add(chunk)
        item = recording.waiting.popleft()
        complete = dataclasses.replace(segment, complete=True)
        hand_out([(recording, item)], [complete], 1.0, 16_000, 0.4)
        recording.all_read()
        return recording.outcome

    ours, theirs, greedy = transcript(model), transcript(plain), transcript(plain, "greedy")
    assert ours.text == theirs.text == greedy.text
    assert theirs.drafter_calls == 0 and "drafter_calls" not in theirs.to_json()
    assert ours.drafter_calls == sum(s.drafter_calls for s in ours.segments) > 0
    found = ours.to_json()
    assert found["drafter_calls"] == ours.drafter_calls
    assert found["segments"][0]["drafter_calls"] == ours.segments[0].drafter_calls
    assert ours.decoder_calls <= greedy.decoder_calls
    model.prepare([chunk], "verify_ctc")
    model.prepare_fallback("verify_ctc")


def test_an_evaluation_counts_the_calls_of_both(same):
    utterances = [Utterance(f"u{i}", "", 0.1) for i in range(len(SAMPLES))]
    source = Source("toy", "test", utterances, [], lambda i: BATCH.audio[i])
    outcome = decode_source(same, source, [BATCH], Verify(WIDTH))
    _, calls = same.drafter.drafted(BATCH)
    assert [h.drafter_calls for h in outcome.hypotheses] == calls.tolist()
    assert outcome.drafter_calls == calls.sum()
    shown = dict.fromkeys(("wer", "cer", "call_reduction", "tokens_per_call", "rtfx"), 1.0)
    shown |= {"strategy": "auto", "options": {}, "batch_size": 5, "decoder_calls": 10}
    shown |= {"identical_to_greedy": 1.0, "acceptance_by_head": None, "compile_seconds": 0.0}
    assert "drafter calls/utt" not in table([shown], 5)
    with_drafter = table([shown, shown | {"drafter_calls": 25}], 5)
    assert "drafter calls/utt" in with_drafter and " 5.00 " in with_drafter


def test_what_cannot_draft_is_refused_in_a_sentence(tmp_path):
    at_8k = Config(front_end=dataclasses.replace(FrontEnd(), sample_rate=8000))
    with pytest.raises(WorkdirError, match=r"draft model small hears audio at 8000 Hz.*16000 Hz"):
        check_drafter(Config(), at_8k, "small")
    with pytest.raises(WorkdirError, match=r"nothing is no folder of a model"):
        load(open_model_folder(FOLDER), draft_model=tmp_path / "nothing")
    with pytest.raises(ValueError, match="--draft_model"):
        Transcriber(alone(WHISPER)).strategy("verify_ctc")

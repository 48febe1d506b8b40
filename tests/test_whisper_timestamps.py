"""Whisper with timestamps: the tokens of transformers, whatever strategy, and no time in a text."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtp_jax
from mtp_jax.audio.segmentation import Chunk
from mtp_jax.checkpoints.workdir import WorkdirError
from mtp_jax.config import Config, Data, FrontEnd, Pretrained, WhisperDecoder
from mtp_jax.decoding import DraftText, Greedy, Verify
from mtp_jax.decoding.beam import BeamSearch
from mtp_jax.decoding.kbest import PrefixBeam
from mtp_jax.inference.decoder_functions import bind_decoder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.build import vocabulary_of
from mtp_jax.models.recogniser import Recogniser, call
from mtp_jax.models.whisper_timestamps import apply_rules, rule_features
from mtp_jax.pretrained.sizes import with_sizes
from mtp_jax.tokenizer import Tokenizer, TokenizerError
from mtp_jax.transcription.phrases import of_words, phrase_spans
from mtp_jax.transcription.results import Segment, Token, Word
from mtp_jax.transcription.transcriber import Transcriber
from tests.pretrained import GOLDEN_WHISPER, tensors_of, whisper_folder
from tests.whisper import LIMIT, decode, encoder, expected, golden_runner, started, texts

ROWS = 6
NEVER = np.finfo(np.float32).min


def with_timestamps(runner: Runner) -> Runner:
    """The same model; its folder suppresses times, which no real one does."""
    config = dataclasses.replace(
        runner.model.config,
        whisper_decoder=dataclasses.replace(runner.model.config.whisper_decoder, timestamps=True),
    )
    vocabulary = vocabulary_of(config, runner.tokenizer)
    special = vocabulary.whisper
    suppressed = tuple(t for t in special.suppressed if t < special.first_time)
    special = dataclasses.replace(special, suppressed=suppressed)
    model = runner.model.clone(
        config=config, vocabulary=dataclasses.replace(vocabulary, whisper=special)
    )
    return Runner(model, runner.params, runner.tokenizer, runner.mesh, runner.imported)


@pytest.fixture(scope="module")
def runner():
    return with_timestamps(golden_runner())


@pytest.fixture(scope="module")
def encode(runner):
    return encoder(runner)


@pytest.fixture(scope="module")
def greedy(runner, encode):
    return decode(runner, encode(), Greedy())


def allowed(seen, special, eos, size):
    """bool[V]: what the rules let follow int[N] tokens, as transformers' loops say it."""
    begin = special.first_time
    ok = np.ones(size, bool)
    ok[special.no_timestamps] = False
    if not seen:
        ok[:begin] = ok[begin + special.latest_beginning + 1 :] = False
        return ok
    last, pair = seen[-1] >= begin, len(seen) < 2 or seen[-2] >= begin
    if last and pair:
        ok[begin:] = False
    elif last:
        ok[:eos] = False
    times = [token for token in seen if token >= begin]
    if times:
        ok[begin : times[-1] + (not (last and not pair))] = False
    return ok


@pytest.mark.parametrize(
    ("name", "start"), [("timed", ()), ("timed_translated", ("de", "translate", "ab"))]
)
def test_greedy_tokens_equal_those_of_transformers(runner, encode, name, start):
    if start:
        start = (*start[:2], tuple(runner.tokenizer.encode(start[2])))
    encoded = started(runner, encode(), *start) if start else encode()  # in the language heard
    found = texts(decode(runner, encoded, Greedy()), runner.tokenizer.eos)
    np.testing.assert_array_equal(found, expected()[name])
    special = runner.model.vocabulary.whisper
    times = found >= special.first_time
    assert np.any(times[:, :-1] & times[:, 1:])  # phrases follow one another,
    text = found < runner.tokenizer.eos
    assert np.any(text[:, :-1] & text[:, 1:])  # and have several tokens


def test_the_rules_are_those_of_transformers(runner):
    """Of texts that keep to them, and of drafts that do not, but for times that decrease."""
    special, eos = runner.model.vocabulary.whisper, runner.tokenizer.eos
    size, count = runner.model.vocabulary.size, 8
    rng = np.random.default_rng(0)
    is_time = rng.random((300, count)) < 0.5
    tokens = np.where(
        is_time,
        special.first_time + np.sort(rng.integers(0, 1501, (300, count))),
        rng.integers(0, eos + 1, (300, count)),
    )
    length = rng.integers(0, count + 1, 300)
    logits = rng.normal(size=(300, size)).astype(np.float32)
    likely = rng.random(300) < 0.5  # some text token
    logits[likely, rng.integers(0, eos, likely.sum())] = 9
    features = rule_features(jnp.asarray(tokens), jnp.asarray(length - 1)[:, None], special)
    # As bfloat16, in which hidden states may be.
    features = features[:, 0].astype(jnp.bfloat16)
    first = jnp.asarray(length == 0)[:, None]
    found = np.asarray(apply_rules(jnp.asarray(logits), features, first, special, eos))
    begin, chose_time = special.first_time, 0
    for row in range(300):
        ok = allowed(tokens[row, : length[row]].tolist(), special, eos, size)
        kept = np.where(ok, logits[row].astype(np.float64), -np.inf)
        if np.log(np.exp(kept[begin:]).sum()) > kept[:begin].max() if ok[begin:].any() else False:
            ok[:begin] = False
            chose_time += 1
        np.testing.assert_array_equal(found[row], np.where(ok, logits[row], NEVER))
    assert 0 < chose_time < 300


@pytest.mark.parametrize("row", [1, 4])
def test_a_row_decodes_as_it_does_alone(runner, encode, greedy, row):
    alone = decode(runner, encode(slice(row, row + 1)), Greedy())
    np.testing.assert_array_equal(greedy.tokens[row], alone.tokens[0])
    assert greedy.calls[row] == alone.calls[0]


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_verification_is_greedy(runner, encode, greedy, wrong):
    """Of drafts that are right, right here and there, and never; across the ends of phrases."""
    rng = np.random.default_rng(1)
    spoilt = rng.random(greedy.tokens.shape) < wrong
    drafts = np.where(
        spoilt, rng.integers(0, runner.tokenizer.vocab_size, spoilt.shape), greedy.tokens
    )
    drafts = DraftText(jnp.asarray(drafts, jnp.int32), greedy.length)
    verified = decode(runner, encode(), Verify(ctc_width=4), ctc_hypothesis=drafts)
    np.testing.assert_array_equal(verified.tokens, greedy.tokens)
    np.testing.assert_array_equal(verified.length, greedy.length)
    assert np.all(verified.calls <= greedy.calls)
    if wrong == 0:
        assert int(verified.calls.sum()) < 0.6 * int(greedy.calls.sum())


@pytest.mark.parametrize("strategy", [BeamSearch(1), PrefixBeam(1, rounds=1)])
def test_a_beam_of_one_is_greedy(runner, encode, greedy, strategy):
    got = decode(runner, encode(), strategy)
    np.testing.assert_array_equal(got.tokens, greedy.tokens)
    np.testing.assert_allclose(got.log_probs, greedy.log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", [BeamSearch(4), PrefixBeam(4, width=4, rounds=3)])
def test_hypotheses_keep_to_the_rules_and_have_their_probability(runner, encode, strategy):
    """Each is scored again in a row of its own, with the tokens that it alone has."""
    encoded, limit = encode(slice(0, 3)), 9
    special, eos = runner.model.vocabulary.whisper, runner.tokenizer.eos
    nbest = jax.device_get(decode(runner, encoded, strategy, limit=limit).nbest)
    assert nbest.real.sum() > 6
    for k in range(4):
        functions = bind_decoder(runner.model, runner.params, encoded)
        hidden, cache = functions.prefill(limit)
        behind, _ = functions.extend(nbest.tokens[:, k], jnp.asarray(nbest.length[:, k]), cache)
        logits = functions.next_token(jnp.concatenate([hidden[:, None], behind[:, :-1]], axis=1))
        scored = jnp.take_along_axis(
            jax.nn.log_softmax(logits), nbest.tokens[:, k, :, None], axis=-1
        )[..., 0]
        for row in np.flatnonzero(nbest.real[:, k]):
            own = nbest.tokens[row, k, : nbest.length[row, k]].tolist()
            for i, token in enumerate(own):
                assert allowed(own[:i], special, eos, logits.shape[-1])[token]
            np.testing.assert_allclose(
                scored[row, : len(own)], nbest.log_probs[row, k, : len(own)], atol=1e-4
            )


@pytest.mark.parametrize("widths", [(1, 1, 4, 2), (3, 5), (8,)])
def test_steps_equal_the_whole_pass(runner, encode, widths):
    """Prefill and calls of any width, drafts rejected between them, against no cache at all."""
    encoded, text = encode(), jnp.asarray(expected()["timed"][:, :8])
    functions = bind_decoder(runner.model, runner.params, encoded)
    hidden, cache = functions.prefill(16)
    parts, at, special = [hidden[:, None]], 0, runner.model.vocabulary.whisper
    for width in widths:
        wrong = jnp.full((ROWS, 2), special.first_time + 1400)  # fed, and taken back
        _, longer = functions.extend(wrong, jnp.full(ROWS, 2), cache)
        cache = longer.rollback(jnp.full(ROWS, 2))
        hidden, cache = functions.extend(text[:, at : at + width], jnp.full(ROWS, width), cache)
        parts.append(hidden)
        at += width
    stepped = jnp.concatenate(parts, axis=1)
    frames = jnp.full(ROWS, expected()["features"].shape[1])
    audio = call(
        Recogniser.encode_speech, runner.model, runner.params, expected()["features"], frames
    )
    tokens = jnp.concatenate([text, jnp.zeros((ROWS, 1), int)], axis=1)
    whole, _ = runner.model.apply(
        {"params": runner.params}, audio, encoded.length, tokens, jnp.full(ROWS, 9)
    )
    assert whole.shape[-1] == runner.model.hidden_width
    np.testing.assert_allclose(stepped, whole, rtol=2e-4, atol=2e-5)


def test_no_time_is_in_a_transcript(runner):
    """Texts, words and tokens are those between the times, and words keep their order."""
    special = runner.model.vocabulary.whisper
    data = dataclasses.replace(runner.model.config.data, max_tokens=LIMIT)
    model = runner.model.clone(config=dataclasses.replace(runner.model.config, data=data))
    short = Runner(model, runner.params, runner.tokenizer, runner.mesh, runner.imported)
    transcriber = Transcriber(short, batch_size=2)
    rng = np.random.default_rng(1)
    chunks = [Chunk(s, rng.normal(scale=4000, size=6000).astype(np.int16), 0.4) for s in (0, 2)]
    decoded = short.run(transcriber._batch(chunks), Greedy()).decoded
    for row, segment in enumerate(transcriber.decode(chunks, "greedy")):
        every = decoded.tokens[row, : decoded.length[row]].tolist()
        plain = [token for token in every if token < special.first_time]
        assert len(plain) < len(every)
        if not segment.looped:
            assert [token.id for token in segment.tokens] == plain
        assert segment.words and "<|" not in segment.text
        times = [t for word in segment.words for t in (word.start, word.end)]
        assert times == sorted(times)
        for word, (start, end) in zip(segment.words, segment.phrases, strict=True):
            assert start <= word.start <= word.end <= end


def test_without_timestamps_nothing_is_added():
    runner = golden_runner()
    functions = bind_decoder(runner.model, runner.params, encoder(runner)(slice(0, 1)))
    hidden, cache = functions.prefill(8)
    assert hidden.shape[-1] == runner.model.config.whisper_decoder.width + 1
    assert cache.tokens is None


def test_the_config_switches_them_on_and_keeps_it():
    config = Config(
        pretrained=Pretrained(model=str(GOLDEN_WHISPER)),
        front_end=FrontEnd(flavour="whisper"),
        data=Data(bucket_seconds=(0.4,)),
    )
    asked = dataclasses.replace(config, whisper_decoder=WhisperDecoder(timestamps=True))
    tokenizer = golden_runner().tokenizer
    for given in (config, asked):
        special = vocabulary_of(with_sizes(given), tokenizer).whisper
        assert special.timestamps == given.whisper_decoder.timestamps
        assert (special.no_timestamps in special.start_tokens("de")) != special.timestamps


@pytest.mark.parametrize(("said", "steps"), [("7", 7), ("null", 50), ("1501", None), ('"a"', None)])
def test_the_latest_beginning_is_read(tmp_path, said, steps):
    folder = whisper_folder(tmp_path / "m", tensors_of(GOLDEN_WHISPER))
    rules = folder / "generation_config.json"
    name = '"max_initial_timestamp_index"'
    assert f"{name}: 50" in rules.read_text()
    rules.write_text(rules.read_text().replace(f"{name}: 50", f"{name}: {said}"))
    if steps is None:
        with pytest.raises(TokenizerError, match="max_initial_timestamp_index that is none"):
            Tokenizer.load(folder)
    else:
        assert Tokenizer.load(folder).special.latest_beginning == steps


def test_phrases_of_tokens_and_words():
    """Times stand at 100; the last phrase was cut."""
    tokens = [100, 1, 2, 150, 150, 3, 175, 200, 4, 5]
    spans = phrase_spans(tokens, 100)
    own = [spans[i] for i in (1, 2, 5, 8, 9)]
    inf = float("inf")
    np.testing.assert_allclose(own, [(0, 1), (0, 1), (1, 1.5), (2, inf), (2, inf)])
    # The second word spans two phrases; no token spells the third alone.
    words = of_words(own, [0, 1, 1, 3, 3], 4)
    np.testing.assert_allclose(words, [(0, 1), (0, 1), (0, 1), (2, inf)])
    assert of_words([], [], 0) == []


def test_segments_are_phrases():
    """Each word is in one, with its own tokens; calls and drafts are counted once, EOS is last."""
    words = tuple(Word(text, i, i + 1.0, 0.5) for i, text in enumerate("abcde"))
    tokens = (*(Token(i, w.text, i, 0.5, i) for i, w in enumerate(words)), Token(9, "", 6, 1.0, -1))
    whole = Segment(
        start=0.0,
        end=5.0,
        words=words,
        tokens=tokens,
        decoder_calls=6,
        accepted=2,
        evidence=((0.0, 0.0),) * 5,
        phrases=((0.0, 2.0), (0.0, 2.0), (2.1, 3.0), (3.0, 7.0), (3.0, 7.0)),
    )
    parts = whole.by_phrase()
    assert [(p.start, p.end, p.text) for p in parts] == [
        (0.0, 2.0, "a b"),
        (2.1, 3.0, "c"),
        (3.0, 5.0, "d e"),
    ]
    assert [p.decoder_calls for p in parts] == [6, 0, 0]
    assert [[t.id for t in p.tokens] for p in parts] == [[0, 1], [2], [3, 4, 9]]
    assert [t.word for t in parts[2].tokens] == [0, 1, -1]
    assert [p.text for p in whole.kept(1, 3).by_phrase()] == ["b", "c"]
    plain = dataclasses.replace(whole, phrases=())
    assert plain.by_phrase() == [plain]


def test_other_models_write_no_timestamps(workdir):
    with pytest.raises(WorkdirError, match="writes no timestamps"):
        mtp_jax.load(workdir, timestamps=True)

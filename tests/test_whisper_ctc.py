"""A CTC head that is added to a finished Whisper: labels of its own, learnt from audio alone."""
# ruff: noqa: F811  # fixtures

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Encoder, Heads, Loss, Tokenizer
from mtp_jax.decoding import Auto, CtcGreedy, Greedy, PrefixBeam, Verify
from mtp_jax.inference.decoder_functions import encode
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.models.params import by_path, merge
from mtp_jax.pretrained.sizes import completed
from mtp_jax.training.loop import train
from mtp_jax.training.optimizer import make_optimizer
from mtp_jax.training.step import init_state, loss_fn
from mtp_jax.transcription.transcriber import Transcriber
from mtp_jax.transcription.word_times import CtcAligner
from tests.pretrained import GOLDEN_WHISPER as FOLDER
from tests.test_whisper_heads import RATE, batch, config_of, folder  # noqa: F401

LABELS = 18
HEADS = Heads(count=3, layers=1, detached=True)
FROZEN = ("whisper/*", "decoder/*", "heads/*")


def ctc_config(folder, **changed):
    config = config_of(folder)
    given = {
        "heads": Heads(count=1),
        "tokenizer": Tokenizer(ctc_vocab_size=LABELS),
        "encoder": Encoder(subsampling=(1,), width=16, layers=1, heads=2, kernel=3),
        "loss": Loss(ctc=1.0),
        "optim": dataclasses.replace(config.optim, steps=150, freeze=FROZEN[:2]),
        "train": dataclasses.replace(config.train, dev_every=150, checkpoint_every=150),
    }
    return completed(dataclasses.replace(config, **given | changed))


def run_of(config, path):
    workdir = Workdir(path)
    workdir.claim(config)
    return train(config, workdir), workdir


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return run_of(ctc_config(folder), tmp_path_factory.mktemp("ctc"))


@pytest.fixture(scope="module")
def reader(folder, tmp_path_factory):
    """One that learns transcripts, as the random model's own text is no language."""
    path = tmp_path_factory.mktemp("read")
    lines = [json.loads(line) for line in (folder / "audio.jsonl").read_text().splitlines()]
    said = [f"{a} {b}" for a in ("the", "hand", "sea") for b in ("and", "that", "den", "a")]
    for line, text in zip(lines, said, strict=True):
        line |= {"text": text, "audio_filepath": str(folder / line["audio_filepath"])}
    manifest = path / "said.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = ctc_config(folder, tokenizer=Tokenizer(ctc_vocab_size=14))
    optim = dataclasses.replace(config.optim, steps=500)
    data = dataclasses.replace(
        config.data, text="as_is", **dict.fromkeys(("train", "dev", "test"), str(manifest))
    )
    config = dataclasses.replace(config, data=data, optim=optim)
    runner, _ = run_of(config, path / "run")
    return runner, said


@pytest.fixture(scope="module")
def model(trained):
    runner, _ = trained
    return Transcriber(runner, batch_size=2)


def texts(tokenizer, decoded):
    return [
        tokenizer.decode(tokens[:length].tolist())
        for tokens, length in zip(decoded.tokens, decoded.length, strict=True)
    ]


def test_nothing_of_the_model_changes(trained, batch):
    runner, workdir = trained
    before, after = load(open_model_folder(FOLDER)).params, by_path(runner.params)
    for path, x in by_path(before).items():
        np.testing.assert_array_equal(x, after[path], err_msg=path)
    own = {path.partition("/")[0] for path in after if path not in runner.imported}
    assert own == {"encoder", "ctc"}
    read = texts(runner.tokenizer.ctc, runner.run(batch, CtcGreedy()).decoded)
    again = load(workdir)
    assert texts(again.tokenizer.ctc, again.run(batch, CtcGreedy()).decoded) == read


def test_it_learns_to_read(reader, batch):
    runner, said = reader
    read = texts(runner.tokenizer.ctc, runner.run(batch, CtcGreedy()).decoded)
    assert sum(a == b for a, b in zip(said, read, strict=True)) > len(said) / 2


def test_the_hypothesis_is_in_the_decoders_tokens(reader, batch):
    """They are those of the tokenizer, of the text behind a space."""
    runner, _ = reader
    found = jax.jit(lambda params: encode(runner.model, params, batch))(runner.params)
    tokens, length = jax.device_get(found.ctc_hypothesis)
    read = texts(runner.tokenizer.ctc, runner.run(batch, CtcGreedy()).decoded)
    assert any(read)
    for row, text in enumerate(read):
        expected = runner.tokenizer.encode(f" {text.rstrip()}")
        assert tokens[row, : length[row]].tolist() == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_drafts_of_ctc_change_no_text(trained, batch, seed):
    """Whatever CTC reads."""
    runner, _ = trained
    rng = np.random.default_rng(seed)
    noise = {"ctc": {"bias": rng.normal(0, 5 * seed, LABELS + 1).astype(np.float32)}}
    other = Runner(
        runner.model, merge(runner.params, noise), runner.tokenizer, runner.mesh, runner.imported
    )
    greedy = other.run(batch, Greedy(4)).decoded
    verify = other.run(batch, Verify(4)).decoded
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)
    assert np.all(verify.calls <= greedy.calls)
    assert seed or int(verify.calls.sum()) < int(greedy.calls.sum())
    plain = other.run(batch, PrefixBeam(2, width=4)).decoded
    drafted = other.run(batch, PrefixBeam(2, width=4, ctc_width=4)).decoded
    np.testing.assert_array_equal(drafted.tokens, plain.tokens)


def test_a_step_of_ctc_alone_has_no_part_for_the_text(trained, batch):
    """Neither the decoder nor a vocabulary of logits: its cost does not depend on the tokens."""
    runner, _ = trained
    with_heads = dataclasses.replace(
        runner.model.config,
        heads=HEADS,
        optim=dataclasses.replace(runner.model.config.optim, freeze=FROZEN),
    )
    model = runner.model.clone(config=with_heads)
    state, _ = init_state(model, make_optimizer(with_heads.optim), runner.mesh)
    labels = np.ones((len(batch.index), 5), np.int32)

    def flops(tokens: int) -> float:
        text = batch._replace(
            tokens=np.ones((len(batch.index), tokens), np.int32),
            token_length=np.full(len(batch.index), tokens, np.int32),
            labels=labels,
            label_length=np.full(len(batch.index), 5, np.int32),
        )

        def loss(trained, key):
            return loss_fn(model, merge(trained, state.frozen), text, key)

        whole = jax.jit(jax.value_and_grad(loss, has_aux=True))
        compiled = whole.lower(state.params, jax.random.key(0)).compile()
        (_, scalars), _ = compiled(state.params, jax.random.key(0))
        assert "ctc" in scalars and not any(name.startswith("head_") for name in scalars)
        return compiled.cost_analysis()["flops"]

    assert set(state.params) == {"encoder", "ctc"}
    assert flops(4) == flops(40)


def test_heads_are_kept_where_ctc_is_added_and_ctc_where_heads_are(
    folder, trained, batch, tmp_path
):
    """Each learns in a run of its own, in either order; then both draft, and change no text."""
    short = {"train": dataclasses.replace(ctc_config(folder).train, dev_every=2)}
    few = functools.partial(dataclasses.replace, ctc_config(folder).optim, steps=2, warmup_steps=0)

    def of(path, begin, **changed):
        runner, workdir = run_of(
            ctc_config(folder, init_from=begin, **short | changed), tmp_path / path
        )
        return by_path(runner.params), workdir, runner.tokenizer

    none = {"tokenizer": Tokenizer(), "loss": Loss(ctc=0.0), "optim": few(freeze=FROZEN[:2])}
    heads, first, _ = of("heads", "", heads=HEADS, **none)
    assert any(path.startswith("heads/layers/") for path in heads) and "ctc/kernel" not in heads
    added, _, tokenizer = of("ctc", str(first.path), heads=HEADS, optim=few(freeze=FROZEN))
    assert tokenizer.ctc.vocab_size == LABELS
    for path, x in heads.items():
        np.testing.assert_array_equal(added[path], x, err_msg=path)
    assert added["ctc/kernel"].shape == (16, LABELS + 1)

    runner, begin = trained
    other, both, tokenizer = of("other", str(begin.path), heads=HEADS, **none)
    assert tokenizer.ctc.pieces == runner.tokenizer.ctc.pieces
    for path, x in by_path(runner.params).items():
        np.testing.assert_array_equal(other[path], x, err_msg=path)
    copied = other["decoder/layers/cross_query/kernel"][-1:]
    np.testing.assert_allclose(other["heads/layers/cross_query/kernel"], copied, atol=0.1)
    model = load(both)
    greedy = model.run(batch, Greedy(4)).decoded
    for strategy in (Verify(4, joint=True), Auto(4)):
        decoded = model.run(batch, strategy).decoded
        np.testing.assert_array_equal(decoded.tokens, greedy.tokens)
        assert np.all(decoded.calls <= greedy.calls)


def test_words_have_the_times_of_ctc(model, batch):
    chunks = [Chunk(float(i), batch.audio[i, : batch.audio_length[i]], 0.0) for i in range(2)]
    assert isinstance(model._assembler._aligner, CtcAligner)
    assert {"ctc", "verify_ctc", "prefix_beam_ctc"} <= set(model.strategies)
    for segment, chunk in zip(model.decode(chunks, "verify_ctc"), chunks, strict=True):
        assert segment.aligned and segment.words
        assert all(of_ctc < 0 for _, of_ctc in segment.evidence)
        times = [t for word in segment.words for t in (word.start, word.end)]
        assert times == sorted(times)
        assert chunk.start <= times[0] and times[-1] <= chunk.start + len(chunk.audio) / RATE

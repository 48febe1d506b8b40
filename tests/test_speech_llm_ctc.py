"""A CTC head that is added to a released speech LLM: word times, and drafts that change no text."""
# ruff: noqa: F811  # fixtures

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.checkpoints.checkpoint import CheckpointError
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Encoder, Heads, Loss, Tokenizer, Train
from mtp_jax.decoding import CtcGreedy, Greedy, Verify
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.models.params import by_path
from mtp_jax.pretrained.exported import export
from mtp_jax.tokenizer import CTC_NAME
from mtp_jax.training.loop import train
from mtp_jax.transcription.transcriber import Transcriber
from mtp_jax.transcription.word_times import CtcAligner
from tests.speech_llms import GOLDEN
from tests.test_speech_llm_heads import MODEL, RATE, batch, config_of, folder  # noqa: F401

NAMES = ("voxtral", "qwen3_asr")
LABELS = 14
ENCODER = Encoder(subsampling=(1,), width=16, layers=1, heads=2, kernel=3)


@pytest.fixture(scope="module", params=NAMES)
def trained(request, folder, tmp_path_factory):
    """One that learns transcripts, as a random model's own text is no language."""
    path = tmp_path_factory.mktemp("ctc")
    lines = [json.loads(line) for line in (folder / "audio.jsonl").read_text().splitlines()]
    said = [f"{a} {b}" for a in ("the", "hand") for b in ("and", "that", "den", "a")]
    for line, text in zip(lines, said, strict=True):
        line |= {"text": text, "audio_filepath": str(folder / line["audio_filepath"])}
    manifest = path / "said.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = config_of(request.param, folder)
    steps = 300
    config = config_of(
        request.param,
        folder,
        data=dataclasses.replace(
            config.data, text="as_is", **dict.fromkeys(("train", "dev", "test"), str(manifest))
        ),
        heads=Heads(count=1),
        tokenizer=Tokenizer(ctc_vocab_size=LABELS),
        encoder=ENCODER,
        loss=Loss(ctc=1.0),
        optim=dataclasses.replace(config.optim, steps=steps, freeze=("*", "!encoder/*", "!ctc*")),
        train=dataclasses.replace(config.train, dev_every=steps, checkpoint_every=steps),
    )
    workdir = Workdir(path / "run")
    workdir.claim(config)
    runner = train(config, workdir)
    return request.param, workdir, by_path(runner.params), runner.imported, said


def read(runner, batch):
    decoded = runner.run(batch, CtcGreedy()).decoded
    return [
        runner.tokenizer.ctc.decode(tokens[:length].tolist())
        for tokens, length in zip(decoded.tokens, decoded.length, strict=True)
    ]


def test_it_learns_to_read_and_nothing_of_the_model_changes(trained, batch, tmp_path):
    name, workdir, after, imported, said = trained
    for path, x in by_path(load(open_model_folder(GOLDEN / name)).params).items():
        np.testing.assert_array_equal(x, after[path], err_msg=path)
    own = {path.partition("/")[0] for path in after if path not in imported}
    assert own == {"ctc_encoder", "ctc"}
    runner = load(workdir)
    texts = read(runner, batch)
    assert sum(a == b for a, b in zip(said, texts, strict=True)) > len(said) / 2
    with pytest.raises(CheckpointError, match=r"has decoded.*load it again"):
        export(runner, workdir, tmp_path / "out")
    export(load(workdir), workdir, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"heads.safetensors", CTC_NAME}
    assert read(load(Workdir(tmp_path / "out")), batch) == texts


def test_drafts_of_ctc_change_no_text(trained, batch):
    _, workdir, *_ = trained
    runner = load(workdir)
    assert runner.model.vocabulary.has_ctc_hypothesis
    greedy = runner.run(batch, Greedy(4)).decoded
    verify = runner.run(batch, Verify(4)).decoded
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)
    assert np.all(verify.calls <= greedy.calls)


def test_words_have_the_times_of_ctc(trained, batch):
    name, workdir, *_ = trained
    runner = load(workdir)
    seconds = 1 / 13 if name == "qwen3_asr" else 0.02
    assert CtcAligner(runner).frame_seconds == pytest.approx(seconds)
    model = Transcriber(runner, batch_size=2)
    assert {"ctc", "verify_ctc", "prefix_beam_ctc"} <= set(model.strategies)
    chunks = [Chunk(float(i), batch.audio[i, : batch.audio_length[i]], 0.0) for i in range(2)]
    for segment, chunk in zip(model.decode(chunks, "ctc"), chunks, strict=True):
        assert segment.aligned and segment.words
        times = [t for word in segment.words for t in (word.start, word.end)]
        assert times == sorted(times)
        assert chunk.start <= times[0] and times[-1] <= chunk.start + len(chunk.audio) / RATE + 0.1


def test_heads_are_kept_where_ctc_is_added(folder, tmp_path):
    """Each learns in a run of its own, the one after the other."""
    few = {"train": Train(dev_every=2, checkpoint_every=2, log_every=2)}
    config = config_of(MODEL, folder)
    optim = dataclasses.replace(config.optim, steps=2, warmup_steps=0)
    first = Workdir(tmp_path / "heads")
    config = dataclasses.replace(config, optim=optim, **few)
    first.claim(config)
    heads = by_path(train(config, first).params["heads"])
    both = config_of(
        MODEL,
        folder,
        init_from=str(first.path),
        tokenizer=Tokenizer(ctc_vocab_size=22),
        encoder=ENCODER,
        loss=Loss(ctc=1.0),
        optim=dataclasses.replace(optim, freeze=("*", "!encoder/*", "!ctc*")),
        **few,
    )
    second = Workdir(tmp_path / "both")
    second.claim(both)
    runner = train(both, second)
    for path, x in by_path(runner.params["heads"]).items():
        np.testing.assert_array_equal(x, heads[path], err_msg=path)
    assert runner.params["ctc"]["kernel"].shape == (16, 23)

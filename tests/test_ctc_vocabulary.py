"""CTC labels of their own, beside the decoder's tokens, from training to export."""
# ruff: noqa: F811  # fixtures

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import mtp_jax
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import (
    Adaptor,
    Config,
    Decoder,
    Encoder,
    Heads,
    Lora,
    Pretrained,
    Whisper,
)
from mtp_jax.config import Tokenizer as TokenizerConfig
from mtp_jax.data import open_source, train_batches
from mtp_jax.decoding import CtcGreedy, DraftsError, Greedy, Verify
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.evaluation.outcome import decode_source
from mtp_jax.evaluation.task import Task
from mtp_jax.inference import encoder_cache
from mtp_jax.inference.load import load
from mtp_jax.models.build import make_model
from mtp_jax.models.params import by_path, merge
from mtp_jax.models.speech_features import speech_features
from mtp_jax.pretrained.exported import export
from mtp_jax.pretrained.sizes import completed
from mtp_jax.pretrained.vocabulary_transfer import for_tokenizer
from mtp_jax.tokenizer import CTC_NAME, Tokenizer
from mtp_jax.training.initialization import labels_as_text, starting_point
from tests.test_pretrained import cache, config, parts, same, train  # noqa: F401

LABELS = 40


@pytest.fixture(scope="module")
def trained(config: Config, tmp_path_factory) -> Workdir:
    own = dataclasses.replace(
        config,
        tokenizer=TokenizerConfig(ctc_vocab_size=LABELS),
        adaptor=Adaptor(ctc_compression=True, aligned_positions=True),
    )
    return train(own, tmp_path_factory.mktemp("own"))


def run(runner, strategy):
    """Hypotheses for the test split."""
    c = runner.model.config
    source = open_source("embedded/tiny:test", c.data, c.front_end.sample_rate)
    batches = Task.of(source, runner).batches(8)
    return decode_source(runner, source, batches, strategy).hypotheses


def test_the_labels_of_a_batch_spell_its_texts(trained):
    config, tokenizer = trained.read_config(), Tokenizer.load(trained.path)
    assert (tokenizer.vocab_size, tokenizer.ctc.vocab_size) == (64, LABELS)
    source = open_source(config.data.train, config.data, 16_000)
    batches, _ = train_batches(source, tokenizer, config)
    batch = next(batches)
    for row, index in enumerate(batch.index):
        text = source.utterances[index].text
        assert tokenizer.ctc.decode(batch.labels[row, : batch.label_length[row]]) == text
        assert tokenizer.decode(batch.tokens[row, : batch.token_length[row] - 1]) == text
    assert batch.labels.shape[1] % 8 == 0
    assert batch.label_length.sum() > batch.token_length.sum()


def test_without_their_own_a_batch_has_none(trained, tmp_path):
    config = trained.read_config()
    Tokenizer.load(trained.path / "tokenizer.model").save(tmp_path / "alone.model")
    (tmp_path / CTC_NAME).unlink()
    tokenizer = Tokenizer.load(tmp_path / "alone.model")
    assert tokenizer.ctc is tokenizer
    source = open_source(config.data.train, config.data, 16_000)
    batch = next(train_batches(source, tokenizer, config)[0])
    assert batch.labels is None


def test_one_that_is_the_same_is_not_of_its_own(trained, tmp_path):
    ctc = Tokenizer.load(trained.path / CTC_NAME)
    ctc.save(tmp_path)
    ctc.save(tmp_path / CTC_NAME)
    assert Tokenizer.load(tmp_path).ctc.pieces == ctc.pieces
    assert Tokenizer.load(tmp_path)._ctc is None
    assert Tokenizer.load(trained.path)._ctc is not None


def test_ctc_is_read_by_its_own_tokenizer(trained):
    runner = load(trained)
    assert runner.params["ctc"]["kernel"].shape[1] == LABELS + 1
    for hypothesis in run(runner, CtcGreedy()):
        assert all(token < LABELS for token in hypothesis.tokens)
        assert hypothesis.text == runner.tokenizer.ctc.decode(hypothesis.tokens)
    greedy, verify = run(runner, Greedy(2)), run(runner, Verify())
    assert [h.tokens for h in verify] == [h.tokens for h in greedy]


def test_labels_of_its_own_are_no_drafts(trained):
    model = mtp_jax.load(trained.path)
    assert "verify_ctc" not in model.strategies
    with pytest.raises(DraftsError, match=r"has none .*: take verify"):
        model.strategy("verify_ctc")


def test_labels_are_trained_anew_for_other_texts_and_the_llama_keeps_its_tokens(trained, tmp_path):
    config = trained.read_config()
    other = train(
        dataclasses.replace(
            config,
            init_from=str(trained.path),
            data=dataclasses.replace(config.data, train="embedded/tiny:dev"),
            tokenizer=dataclasses.replace(config.tokenizer, retrained=True),
            optim=dataclasses.replace(config.optim, learning_rate=1e-9),
        ),
        tmp_path,
    )
    before, after = load(trained), load(other)
    assert after.tokenizer.pieces == before.tokenizer.pieces
    assert after.tokenizer.ctc.pieces != before.tokenizer.ctc.pieces
    own = for_tokenizer(by_path(before.params), before.tokenizer, after.tokenizer, False)
    assert own.keys() == {"ctc/kernel", "ctc/bias", "label_embedding"}
    for path, x in by_path(after.params).items():
        theirs = own.get(path, by_path(before.params)[path])
        np.testing.assert_allclose(x, theirs, atol=1e-6, err_msg=path)


def test_a_label_begins_as_what_it_spells(trained):
    tokenizer = Tokenizer.load(trained.path)
    table = np.random.default_rng(0).normal(size=(70, 16)).astype(np.float32)
    rows = labels_as_text(tokenizer, jax.numpy.asarray(table))
    assert rows.shape == (LABELS, 16)
    for label in (10, 20, LABELS - 1):
        tokens = tokenizer.encode(tokenizer.ctc.pieces[label].replace("▁", " "))
        np.testing.assert_allclose(rows[label], table[tokens].mean(0), rtol=1e-5)


def test_a_pretrained_decoder_first_reads_what_ctc_finds_and_hears_no_more(trained, tmp_path):
    config, tokenizer = trained.read_config(), Tokenizer.load(trained.path)
    model, mesh = make_model(config, tokenizer), make_mesh(config.mesh)
    begun, left_out = starting_point(model, tokenizer, Workdir(tmp_path), mesh)
    whole = by_path(merge(begun, left_out))
    assert whole["adaptor/kernel"].shape == (config.encoder.width, config.decoder.width)
    assert not whole["adaptor/kernel"].any()
    spelled = labels_as_text(tokenizer, whole["decoder/embedding"])
    np.testing.assert_array_equal(whole["label_embedding"], spelled)
    assert load(trained).params["adaptor"]["kernel"].any(), "it is trained"


def test_the_export_has_both(trained, tmp_path):
    runner = load(trained)
    export(runner, trained, tmp_path)
    again = load(Workdir(tmp_path))
    assert again.tokenizer.ctc.pieces == runner.tokenizer.ctc.pieces
    for strategy in (CtcGreedy(), Greedy()):
        assert run(again, strategy) == run(runner, strategy)


def test_conformer_and_ctc_are_taken_over_from_a_model_with_another_decoder(
    trained,
    config,
    tmp_path,
):
    fresh = dataclasses.replace(
        config,
        pretrained=Pretrained(encoder=config.pretrained.encoder, ctc=str(trained.path)),
        tokenizer=TokenizerConfig(vocab_size=80),
        encoder=Encoder(width=24, dropout=0.2),  # its sizes are those of the other
        adaptor=Adaptor(ctc_compression=True),
        decoder=Decoder(width=24, layers=1, query_heads=2, kv_heads=1, head_size=8),
        heads=Heads(count=2),
        optim=dataclasses.replace(config.optim, freeze=("whisper/*", "encoder/*", "ctc/*")),
    )
    made = completed(fresh)
    assert made.encoder.width == trained.read_config().encoder.width
    assert made.encoder.dropout == 0.2
    workdir = train(made, tmp_path)
    ours, theirs = by_path(load(workdir).params), by_path(load(trained).params)
    for path, x in theirs.items():
        if path.startswith(("encoder/", "ctc/")):
            np.testing.assert_array_equal(ours[path], x)
    tokenizer = Tokenizer.load(workdir.path)
    assert (tokenizer.vocab_size, tokenizer.ctc.vocab_size) == (80, LABELS)
    assert ours["label_embedding"].shape == (LABELS, 24)


def test_a_speech_encoder_that_was_tuned_is_taken_over_and_cached_as_it_is_now(
    config, tmp_path, tmp_path_factory
):
    tuned = train(
        config,
        tmp_path_factory.mktemp("tuned"),
        pretrained=Pretrained(encoder=config.pretrained.encoder),
        tokenizer=TokenizerConfig(vocab_size=64),
        whisper=Whisper(lora=Lora(rank=2)),
        decoder=Decoder(width=24, layers=1, query_heads=2, kv_heads=1, head_size=8),
        optim=dataclasses.replace(config.optim, freeze=("whisper/*", "!*/lora_?")),
    )
    behind = train(
        config,
        tmp_path,
        pretrained=dataclasses.replace(config.pretrained, ctc=str(tuned.path)),
        optim=dataclasses.replace(
            config.optim, freeze=("whisper/*", "decoder/*", "!decoder/*/lora_?")
        ),
    )
    ours, theirs = load(behind), load(tuned)
    assert theirs.params["whisper"]["blocks"]["up"]["lora_b"].any()
    assert same(ours.params["whisper"], theirs.params["whisper"])
    data = ours.model.config.data
    plain = open_source("embedded/tiny:test", data, 16_000)
    stored = encoder_cache.with_encoder_cache(plain, ours)
    for runner in (ours, theirs):
        batch = next(iter(Task.of(plain, runner).batches(4)))
        features, length = speech_features(runner.model, runner.params, batch)
        for row, n in enumerate(length):
            kept, _ = stored.features.read(int(batch.index[row]), 1.0)
            np.testing.assert_allclose(kept, features[row, :n], rtol=2e-3, atol=2e-3)


def test_a_conformer_of_another_speech_encoder_is_refused(trained, config):
    other = dataclasses.replace(config, pretrained=Pretrained(ctc=str(trained.path)))
    with pytest.raises(WorkdirError, match="another speech encoder"):
        completed(other)  # it has none

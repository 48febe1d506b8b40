"""A trained model for another tokenizer: what is known of a piece goes over to it."""
# ruff: noqa: F811  # fixtures

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Config, ConfigError, Data, Encoder, Heads, Mesh, Optim, Pretrained, Train
from mtp_jax.config import Tokenizer as TokenizerConfig
from mtp_jax.data import open_source
from mtp_jax.distributed.sharding import make_mesh
from mtp_jax.inference.load import load
from mtp_jax.models.build import make_model
from mtp_jax.models.params import by_path
from mtp_jax.pretrained.exported import export
from mtp_jax.pretrained.vocabulary_transfer import for_tokenizer, shares
from mtp_jax.tokenizer import Tokenizer, TokenizerError
from mtp_jax.tokenizer.huggingface import HuggingFaceTokenizer
from mtp_jax.training.initialization import starting_point
from mtp_jax.training.run_tokenizer import open_tokenizer
from tests import models
from tests.pretrained_parts import DECODER
from tests.test_pretrained import cache, train  # noqa: F401
from tests.test_tokenizer_json import byte_level

ENGLISH = ["turn the left light on", "the cat sat on the mat", "a cold night and a long song"]
GERMAN = ["die Tür ist zu", "der Hund schläft schön lang", "im Süden ist es heiß und still"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> tuple[Tokenizer, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return (
        Tokenizer.train(ENGLISH, folder / "english.model", 30, "bpe"),
        Tokenizer.train(GERMAN, folder / "german.model", 40, "bpe"),
    )


def test_a_piece_begins_as_what_spells_it():
    theirs = ["<unk>", "</s>", "▁", "s", "c", "h", "ch"]
    found = shares(theirs, ["</s>", "ch", "sch", "▁schö", "ö"])
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found[0], np.eye(7)[1])
    np.testing.assert_array_equal(found[1], np.eye(7)[6])
    np.testing.assert_allclose(found[2], [0, 0, 0, 0.5, 0, 0, 0.5])
    np.testing.assert_allclose(found[3], np.array([0, 0, 1, 1, 0, 0, 1]) / 3, rtol=1e-6)
    np.testing.assert_allclose(found[4], np.full(7, 1 / 7), rtol=1e-6)


def test_with_the_same_tokenizer_nothing_changes(tokenizers):
    theirs, _ = tokenizers
    assert for_tokenizer({"ctc/bias": jnp.zeros(31)}, theirs, theirs, independent=True) == {}


def test_what_a_model_says_of_common_pieces_it_goes_on_saying(tokenizers):
    theirs, ours = tokenizers
    old, new = theirs.vocab_size, ours.vocab_size
    rng = np.random.default_rng(0)
    shapes = {
        "decoder/embedding": (old, 8),
        "decoder/final_norm/scale": (8,),
        "heads/kernel": (3, 8, old),
        "ctc/kernel": (6, old + 1),
        "ctc/bias": (old + 1,),
    }
    params = {path: jnp.asarray(rng.normal(size=shape)) for path, shape in shapes.items()}
    found = for_tokenizer(params, theirs, ours, independent=True)
    assert {path: x.shape for path, x in found.items()} == {
        "decoder/embedding": (new, 8),
        "heads/kernel": (3, 8, new),
        "ctc/kernel": (6, new + 1),
        "ctc/bias": (new + 1,),
    }
    scored = rng.normal(size=6)
    before = scored @ params["ctc/kernel"] + params["ctc/bias"]
    after = scored @ found["ctc/kernel"] + found["ctc/bias"]
    np.testing.assert_allclose(after[-1], before[-1], rtol=1e-5)  # the blank
    both = set(theirs.pieces) & set(ours.pieces)
    assert {"<s>", "</s>", "▁", "n"} <= both
    for piece in both:
        i, k = ours.pieces.index(piece), theirs.pieces.index(piece)
        np.testing.assert_allclose(after[i], before[k], rtol=1e-5)
        for path, axis in (("decoder/embedding", 0), ("heads/kernel", 2)):
            now, then = np.asarray(found[path]), np.asarray(params[path])
            np.testing.assert_allclose(now.take(i, axis), then.take(k, axis), rtol=1e-6)


def test_a_run_goes_on_from_another_with_tokens_of_its_own(cache, tmp_path):
    config = Config(
        data=Data(
            train="embedded/tiny:train",
            dev="embedded/tiny:dev",
            test="embedded/tiny:test",
            cache_dir=str(cache),
            bucket_seconds=(3.2,),
            batch_size=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=60),
        encoder=Encoder(width=16, layers=1, heads=2, kernel=3, feedforward=1),
        decoder=DECODER,
        heads=Heads("latent", 2),
        optim=Optim(steps=2, warmup_steps=1),
        train=Train(log_every=2, dev_every=2, checkpoint_every=2),
    )
    before = load(train(config, tmp_path / "before"))
    after = load(
        train(
            config,
            tmp_path / "after",
            init_from=str(tmp_path / "before"),
            heads=Heads("independent", 2),
            data=dataclasses.replace(config.data, train="embedded/tiny:dev"),
            tokenizer=TokenizerConfig(vocab_size=50, retrained=True),
            optim=dataclasses.replace(config.optim, learning_rate=1e-9),
        )
    )
    assert (before.tokenizer.vocab_size, after.tokenizer.vocab_size) == (60, 50)
    old, new = by_path(before.params), by_path(after.params)
    own = for_tokenizer(old, before.tokenizer, after.tokenizer, independent=False)
    assert own.keys() == {"decoder/embedding", "ctc/kernel", "ctc/bias"}
    for path, x in new.items():
        if path != "heads/kernel":  # of another kind: new
            np.testing.assert_allclose(x, own.get(path, old[path]), atol=1e-6, err_msg=path)
    export(after, Workdir(tmp_path / "after"), tmp_path / "exported")
    alone = load(Workdir(tmp_path / "exported"))
    assert alone.tokenizer.pieces == after.tokenizer.pieces


# With a vocabulary as large as the decoder is wide, shapes alone would not tell heads apart.
WIDE = dataclasses.replace(
    models.CONFIG,
    tokenizer=TokenizerConfig(vocab_size=48),
    decoder=dataclasses.replace(models.CONFIG.decoder, width=48),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a model with heads that are given, and its parameters by path."""

    @functools.cache
    def made(heads: Heads):
        path = tmp_path_factory.mktemp("theirs") / "run"
        source = models.tiny_workdir(path, dataclasses.replace(WIDE, heads=heads))
        return source, by_path(load(Workdir(source)).params)

    return made


@pytest.mark.parametrize(
    ("theirs", "ours", "kept"),
    [
        (Heads("latent", 3), Heads("latent", 3, detached=True), True),
        (Heads("latent", 3), Heads("latent", 3, layers=1), False),
        (Heads("latent", 3), Heads("latent", 2), False),
        (Heads("latent", 3), Heads("independent", 3), False),
        (Heads("independent", 3), Heads("independent", 3), True),
        (Heads("independent", 3), Heads("latent", 1), False),
        (Heads("latent", 3, layers=1), Heads("latent", 3), False),
    ],
)
@pytest.mark.parametrize("retrained", [False, True])
def test_heads_that_are_not_alike_are_new(theirs, ours, kept, retrained, trained, tmp_path):
    source, params = trained(theirs)
    before = Tokenizer.load(source)
    tokenizer = before
    if retrained:
        tokenizer = Tokenizer.train(ENGLISH + GERMAN, tmp_path / "ours.model", 48, "bpe")
    begins = dataclasses.replace(
        WIDE,
        init_from=str(source),
        heads=ours,
        tokenizer=dataclasses.replace(WIDE.tokenizer, retrained=retrained),
    )
    (tmp_path / "run").mkdir()
    model, mesh = make_model(begins, tokenizer), make_mesh(Mesh())
    given, _ = starting_point(model, tokenizer, Workdir(tmp_path / "run"), mesh)
    kernel = by_path(given).get("heads/kernel")
    if kept:
        own = for_tokenizer(params, before, tokenizer, theirs.kind == "independent")
        expected = own.get("heads/kernel", params["heads/kernel"])
        np.testing.assert_allclose(kernel, expected, atol=1e-6)
        assert np.any(kernel)
    else:
        assert kernel is None if ours.count == 1 else not np.any(kernel)
        assert not [path for path in by_path(given) if path.startswith(("heads/l", "heads/n"))]


def retrained(theirs: Tokenizer, cache, folder, ctc: int = 0, **pretrained) -> Tokenizer:
    """The tokenizer of a run that goes on, in German, from one with the tokenizer `theirs`."""
    (folder / "run").mkdir(parents=True)
    theirs.save(folder)
    config = Config(
        init_from=str(folder),
        pretrained=Pretrained(**pretrained),
        tokenizer=TokenizerConfig("", 40, "bpe", ctc_vocab_size=ctc, retrained=True),
    )
    scored = open_source("embedded/tiny:dev", Data(cache_dir=str(cache)), 16_000)
    texts = [dataclasses.replace(scored.utterances[0], text=text) for text in GERMAN]
    german = dataclasses.replace(scored, utterances=texts)
    return open_tokenizer(config, Workdir(folder / "run"), german)


def test_a_decoder_from_scratch_has_new_tokens_and_ctc_its_own_new_ones(
    tokenizers, cache, tmp_path
):
    theirs, german = tokenizers
    assert retrained(theirs, cache, tmp_path / "one").pieces == german.pieces
    both = theirs.with_ctc(Tokenizer.train(ENGLISH, tmp_path / "ctc.model", 32, "bpe"))
    ours = retrained(both, cache, tmp_path / "two")
    assert (ours.vocab_size, ours.ctc.vocab_size) == (40, 32)
    assert ours.decode(ours.encode(GERMAN[0])) == GERMAN[0]
    assert retrained(both, cache, tmp_path / "more", ctc=36).ctc.vocab_size == 36
    few = theirs.with_ctc(Tokenizer.train(["a cat"], tmp_path / "few.model", 9, "bpe"))
    with pytest.raises(TokenizerError, match=r"set config\.tokenizer\.ctc_vocab_size to .* more"):
        retrained(few, cache, tmp_path / "few")
    with pytest.raises(TokenizerError, match=r"leave config\.tokenizer\.ctc_vocab_size at 0"):
        retrained(theirs, cache, tmp_path / "none", ctc=36)


def test_a_llama_is_not_parted_from_its_tokens(tokenizers, cache, tmp_path):
    """Its config names where it came from, or after an export the tokenizer alone tells."""
    english, _ = tokenizers
    of_llm = HuggingFaceTokenizer(byte_level(), eos=1)
    for i, (theirs, source) in enumerate(((english, {"decoder": "llama"}), (of_llm, {}))):
        with pytest.raises(TokenizerError, match=r"would part the LLaMA of .* leave it False"):
            retrained(theirs, cache, tmp_path / str(i), **source)
    ours = retrained(of_llm.with_ctc(english), cache, tmp_path / "labels")
    assert (ours.pieces, ours.ctc.vocab_size) == (of_llm.pieces, english.vocab_size)
    assert set(ours.ctc.pieces) - set(english.pieces)


def test_there_must_be_something_to_begin_with():
    with pytest.raises(ConfigError, match=r"tokenizer\.retrained needs config\.init_from"):
        Config(tokenizer=TokenizerConfig(retrained=True))

"""A strategy is one file and one entry: a toy one is registered, and everything finds it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from starlette.testclient import TestClient

import mtp_jax
from mtp_jax import decoding
from mtp_jax.config import Config, ConfigError, Evaluation, Mwer
from mtp_jax.decoding import Decoded, Greedy, registry
from mtp_jax.evaluation.compare import table_rows
from mtp_jax.evaluation.report import draw, table
from mtp_jax.planning.programs import strategy_of
from mtp_jax.serving.app import Service, Settings


@struct.dataclass
class Toy(Greedy):
    """Greedy under another name, with a list of its one hypothesis."""

    @property
    def name(self) -> str:
        return "toy"

    def decode(self, model, active, max_tokens) -> Decoded:
        made = super().decode(model, active, max_tokens)
        nbest = decoding.NBest(
            tokens=made.tokens[:, None],
            length=made.length[:, None],
            log_probs=made.log_probs[:, None],
            real=active[:, None],
        )
        return dataclasses.replace(made, nbest=nbest)


@pytest.fixture
def toy() -> Iterator[registry.Entry]:
    entry = registry.Entry(
        name="toy",
        summary="Greedy once more.",
        variants=lambda options: [registry.Variant(Toy(), {"beams": options.beams})],
        makes_nbest=True,
        marker="h",
        color="tab:cyan",
    )
    registry.register(entry)
    yield entry
    registry.unregister("toy")


def test_every_entry_makes_a_strategy_that_knows_its_name() -> None:
    options = registry.Options(heads=3)
    for name in registry.names():
        for variant in registry.get(name).variants(options):
            assert variant.strategy.name == name
            assert hash(type(variant.strategy)) and variant.width >= 1
    assert registry.get("verify").variants(options)[0].width == 3
    with pytest.raises(ValueError, match="strategy 'nothing' is not one of ctc, greedy"):
        registry.get("nothing")
    with pytest.raises(ValueError, match="there is a strategy greedy already"):
        registry.register(registry.get("greedy"))


def test_every_strategy_is_a_file_of_its_own() -> None:
    files = {
        Path(inspect.getfile(type(variant.strategy))).name
        for name in registry.names()
        for variant in registry.get(name).variants(registry.Options())
    }
    expected = {"auto", "ctc_greedy", "greedy", "threshold", "verify", "beam", "kbest"}
    assert files == {f"{name}.py" for name in expected}


def test_configs_find_it(toy: registry.Entry) -> None:
    assert Evaluation(strategies=("toy",)).strategies == ("toy",)
    assert Mwer(search="toy").search == "toy"
    registry.unregister("toy")
    with pytest.raises(ConfigError, match="'toy'; choose one of ctc, "):
        Evaluation(strategies=("toy",))
    with pytest.raises(ConfigError, match="'toy'; choose one of beam, "):
        Mwer(search="toy")
    registry.register(toy)


def test_the_table_and_its_pictures_find_it(toy: registry.Entry, tmp_path: Path) -> None:
    rows = table_rows(Evaluation(strategies=("toy", "greedy"), beams=5), 1, 0.9, registry.names())
    assert [(entry.name, variant.shown) for entry, variant in rows][-1] == ("toy", {"beams": 5})
    row = {
        **dict.fromkeys(("wer", "cer", "tokens_per_call", "rtfx", "compile_seconds"), 1.0),
        "strategy": "toy",
        "options": {"beams": 5},
        "batch_size": 1,
        "decoder_calls": 2,
        "call_reduction": 1.0,
        "acceptance_by_head": None,
        "identical_to_greedy": 1.0,
    }
    assert "| toy (beams 5) |" in table([row], 1)
    results = {"rows": [row], "dataset": {"split": "test"}}
    assert all(file.stat().st_size for file in draw(results, tmp_path))


def test_transcribing_finds_it(toy: registry.Entry, model, waves) -> None:
    assert "toy" in model.strategies
    assert isinstance(model.strategy("toy"), Toy)
    made = model.transcribe(waves[0], rate=model.sample_rate, strategy="toy")
    assert made.strategy == "toy"
    assert made.text == model.transcribe(waves[0], rate=model.sample_rate, strategy="greedy").text


def test_the_service_and_its_page_find_it(toy: registry.Entry, model) -> None:
    service = Service(model, Settings(models=("tiny",), warm=()))
    with TestClient(service.app()) as client:
        (listed,) = client.get("/v1/models").json()["data"]
        page = client.get("/page.js").text + client.get("/").text
    expected = {
        "name": "toy",
        "summary": toy.summary,
        "calls_decoder": True,
        "takes_tau": False,
    }
    assert expected in listed["strategies"]
    # The page shows what is listed, and nothing of its own.
    assert [strategy["name"] for strategy in listed["strategies"]] == list(model.strategies)
    assert "model.strategies.map(" in page
    for name in registry.names():
        assert not re.search(rf"\b{name}\b", page), name
        assert registry.get(name).summary not in page


def test_compile_and_mwer_find_it(toy: registry.Entry) -> None:
    assert isinstance(strategy_of(Config(), "toy"), Toy)
    assert "toy" in registry.names(lambda entry: entry.makes_nbest)


def test_no_module_lists_strategies_by_itself() -> None:
    """Two names of strategies in one tuple, list, set or table are a list beside the registry."""
    root = Path(mtp_jax.__file__).parent
    names = {*registry.names()} - {"ctc", "beam", "greedy"}  # words with other meanings
    lists = set()
    for file in sorted(root.rglob("*.py")):
        if file.name == "registry.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            items: list[ast.expr | None] = []
            if isinstance(node, ast.Dict):
                items = list(node.keys)
            elif isinstance(node, ast.Tuple | ast.List | ast.Set):
                items = list(node.elts)
            listed = {x.value for x in items if isinstance(x, ast.Constant)} & names
            lists |= {str(file.relative_to(root))} if len(listed) > 1 else set()
    assert lists == {"config/run.py"}, "the config alone says which rows the table has"


def test_log_probabilities_of_the_most_likely_tokens() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 4, 7)).astype(np.float32)
    tokens, log_probs = decoding.text.most_likely(jnp.asarray(logits))
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    np.testing.assert_allclose(log_probs, expected.max(-1), rtol=1e-5)

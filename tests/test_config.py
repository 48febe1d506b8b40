"""Configs: what is refused and how, and a golden dump of every file in configs/.

``python -m tests.test_config`` writes the golden dumps anew; look at the difference before you
commit it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from mtp_jax.cli import last_of_each
from mtp_jax.config import (
    Config,
    ConfigError,
    differences,
    from_config_dict,
    from_saved,
    to_config_dict,
)

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").glob("*.py"))
GOLDEN = ROOT / "tests" / "golden" / "configs"


def resolved(file: pathlib.Path) -> Config:
    """The config that a file of configs/ describes, as the command line reads it."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config_dict(module.get_config())


def dump(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=1) + "\n"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_resolved_configs_are_as_dumped(file: pathlib.Path) -> None:
    golden = (GOLDEN / f"{file.stem}.json").read_text()
    assert dump(resolved(file)) == golden, "if this was meant: python -m tests.test_config"


def test_every_dump_has_its_config() -> None:
    assert [file.stem for file in FILES] == sorted(file.stem for file in GOLDEN.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_configs_survive_json_and_config_dict(file: pathlib.Path) -> None:
    config = resolved(file)
    assert from_config_dict(to_config_dict(config)) == config
    assert from_config_dict(json.loads(dump(config))) == config
    assert hash(from_config_dict(json.loads(dump(config)))) == hash(config)


def test_missing_fields_are_defaults() -> None:
    assert from_config_dict({}) == Config()
    assert from_config_dict({"optim": {"steps": 300}}).optim.steps == 300
    assert from_config_dict({"optim": {"steps": 300}}).data == Config().data


def test_lists_are_taken_for_tuples_and_integers_for_floats() -> None:
    config = from_config_dict(
        {"data": {"bucket_seconds": [1, 2.5]}, "encoder": {"subsampling": [2, 2]}}
    )
    assert config.data.bucket_seconds == (1.0, 2.5)
    assert all(type(s) is float for s in config.data.bucket_seconds)
    assert config.encoder.subsampling == (2, 2)


def test_overrides_go_through_config_dict() -> None:
    """What ``--config.optim.steps=100 --config.evaluation.taus=0.5,0.9`` leaves."""
    values = to_config_dict(Config())
    values.optim.steps = 500
    values.evaluation.taus = (0.5, 0.9)
    values.decoder.rope_scaling.kind = "llama3"
    config = from_config_dict(values)
    assert config.optim.steps == 500
    assert config.evaluation.taus == (0.5, 0.9)
    assert config.decoder.rope_scaling.kind == "llama3"


def test_of_what_is_given_twice_the_last_counts() -> None:
    values = flags.FlagValues()
    given = [
        "command",
        '--config.optim.freeze=("whisper/*", "encoder/*")',
        "--config.optim.steps=3",
        "--config.optim.freeze=('ctc/*',)",
        "--config.optim.steps=4",
        "--config.evaluation.taus=0.5",  # config_flags' own way to write a tuple
        "--config.evaluation.taus=0.9",
    ]
    config_flags.DEFINE_config_dict(
        "config", to_config_dict(Config()), flag_values=values, sys_argv=given
    )
    values(last_of_each(given))
    assert values["config"].value.optim.freeze == ("ctc/*",)
    assert values["config"].value.optim.steps == 4
    assert values["config"].value.evaluation.taus == (0.5, 0.9)


# group and field by dotted name, value, and what the message must say besides the full name
REFUSED = [
    # unknown
    ("optm", {}, "did you mean config.optim?"),
    ("optim.step", 3, "did you mean config.optim.steps?"),
    ("decoder.rope_scaling.factr", 2.0, "did you mean config.decoder.rope_scaling.factor?"),
    ("heads.xyz", 3, "it has kind, count"),
    # of the wrong type
    ("seed", "0", "must be of type int, not '0'"),
    ("seed", 0.5, "must be of type int, not 0.5"),
    ("seed", True, "must be of type int, not True"),
    ("loss.ctc", "0.5", "must be of type float, not '0.5'"),
    ("loss.ctc", None, "must be of type float, not None"),
    ("data.train", 3, "must be of type str, not 3"),
    ("decoder.tied", 1, "must be of type bool, not 1"),
    ("data.bucket_seconds", 2.4, "must be a tuple, not 2.4"),
    ("data.bucket_seconds", "2.4", "must be a tuple, not '2.4'"),
    ("encoder.subsampling", [2, "2"], "must be of type int, not '2'"),
    ("optim", 3, "must be a group of fields, not 3"),
    # out of range
    ("front_end.flavour", "mfcc", "choose one of kaldi, whisper"),
    ("front_end.mel_bins", 0, "must be positive"),
    ("front_end.sample_rate", 16, "must be 1000 or more"),
    ("augment.speeds", [], "must be a non-empty tuple"),
    ("augment.speeds", [3.0], "between 0.5 and 2"),
    ("augment.freq_masks", -1, "must not be negative"),
    ("augment.time_fraction", 1.1, "must be within [0, 1]"),
    ("data.bucket_seconds", [], "must be positive and increasing"),
    ("data.bucket_seconds", [2.0, 1.0], "must be positive and increasing"),
    ("data.bucket_seconds", [1.0, 1.0], "must be positive and increasing"),
    ("data.bucket_seconds", [0.0, 1.0], "must be positive and increasing"),
    ("data.batch_size", 0, "must be positive"),
    ("data.max_tokens", 0, "must be positive"),
    ("tokenizer.algorithm", "word", "choose one of unigram, bpe"),
    ("tokenizer.vocab_size", 4, "must exceed"),
    ("encoder.subsampling", [], "at least one stride"),
    ("encoder.subsampling", [2, 0], "each 1 or more"),
    ("encoder.width", 100, "config.encoder.heads"),
    ("encoder.kernel", 8, "must be odd"),
    ("encoder.dropout", 1.0, "must be within [0, 1)"),
    ("decoder.kv_heads", 3, "must divide config.decoder.query_heads"),
    ("decoder.head_size", 7, "must be even"),
    ("decoder.layers", 0, "must be positive"),
    ("decoder.rope_scaling.kind", "ntk", "choose one of none, linear, llama3, yarn"),
    ("decoder.rope_scaling.factor", 0.5, "must be 1 or more"),
    ("heads.kind", "medusa", "choose one of"),
    ("heads.count", 0, "must be 1 or more"),
    ("heads.layers", -1, "must not be negative"),
    ("loss.head_weight", -0.1, "must not be negative"),
    ("loss.label_smoothing", 1.0, "must be within [0, 1)"),
    ("mwer.weight", -1.0, "must not be negative"),
    ("mwer.beams", 1, "must be 2 or more"),
    ("optim.algorithm", "sgd", "choose one of adamw, muon"),
    ("optim.steps", 0, "must be 1 or more"),
    ("optim.warmup_steps", 10**6, "config.optim.steps"),
    ("optim.learning_rate", 0.0, "must be positive"),
    ("optim.b2", 1.0, "must be within [0, 1)"),
    ("optim.weight_decay", -1.0, "must not be negative"),
    ("train.dtype", "float16", "choose one of float32, bfloat16"),
    ("train.log_every", 0, "must be positive"),
    ("train.max_loss_ratio", 1.0, "must exceed 1"),
    ("mesh.data", 0, "each must be 1 or more"),
    ("mesh.tensor", -1, "at most one may be -1"),
    ("evaluation.batch_sizes", [], "must hold positive sizes"),
    ("evaluation.batch_sizes", [0], "must hold positive sizes"),
    ("evaluation.normalizer", "german", "choose one of english, basic, none"),
    ("evaluation.strategies", [], "must name at least one"),
    ("evaluation.strategies", ["greedy", "best"], "choose one of ctc, greedy, auto, threshold"),
    ("evaluation.draft_width", 1, "must be 2 or more"),
    ("evaluation.beam_rounds", 0, "must be positive"),
    ("mwer.rounds", 0, "must be positive"),
    ("mwer.search", "best", "choose one of"),
    ("evaluation.beams", 0, "must be positive"),
]


@pytest.mark.parametrize(("field", "value", "remedy"), REFUSED, ids=lambda x: str(x)[:40])
def test_a_wrong_key_or_value_is_refused_by_name(field: str, value: Any, remedy: str) -> None:
    *groups, last = field.split(".")
    values: dict[str, Any] = {last: value}
    for group in reversed(groups):
        values = {group: values}
    for form in (values, ConfigDict(values)):
        with pytest.raises(ConfigError) as refusal:
            from_config_dict(form)
        message = str(refusal.value)
        assert message.startswith(f"config.{'mesh' if groups == ['mesh'] else field}"), message
        assert remedy in message
        assert "\n" not in message


def test_fields_that_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"config\.front_end\.sample_rate \(8000\).*whisper"):
        from_config_dict({"front_end": {"flavour": "whisper", "sample_rate": 8_000}})
    with pytest.raises(ConfigError, match=r"heads\.layers \(2\) needs config\.heads\.count"):
        from_config_dict({"heads": {"layers": 2, "count": 1}})


def test_what_an_earlier_version_saved_is_read() -> None:
    saved = {
        "evaluation": {"ctc_width": 9, "beam_tau": 0.8, "beams": 5},
        "mwer": {"tau": 0.7, "search_heads": 0, "beams": 3},
    }
    config = from_saved(saved)
    assert (config.evaluation.draft_width, config.evaluation.beams, config.mwer.beams) == (9, 5, 3)
    assert from_saved({"evaluation": {"draft_width": 7}}).evaluation.draft_width == 7
    for wrong, said in (({"mwer": {"taus": 1}}, r"config\.mwer.*taus"), ({"mwer": 3}, r"mwer")):
        with pytest.raises(ConfigError, match=said):
            from_saved(wrong)


def test_differences_name_every_field() -> None:
    config = Config()
    assert differences(config, config) == []
    other = dataclasses.replace(
        config,
        seed=1,
        optim=dataclasses.replace(config.optim, steps=config.optim.steps + 1),
        decoder=dataclasses.replace(
            config.decoder, rope_scaling=dataclasses.replace(config.decoder.rope_scaling, factor=2)
        ),
    )
    steps = config.optim.steps
    assert differences(config, other) == [
        "seed: 0 -> 1",
        "decoder.rope_scaling.factor: 1.0 -> 2",
        f"optim.steps: {steps} -> {steps + 1}",
    ]


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for stale in GOLDEN.glob("*.json"):
        stale.unlink()
    for config_file in FILES:
        (GOLDEN / f"{config_file.stem}.json").write_text(dump(resolved(config_file)))
        print(GOLDEN / f"{config_file.stem}.json")

"""The versions of `constraints/`: one for all that is required, and none below what is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "constraints").glob("python*.txt"))


def required() -> list[Requirement]:
    """What an installation needs, and what the extras need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.partition("#")[0] for line in (ROOT / "requirements.txt").read_text().split("\n")]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    return [Requirement(line) for line in [*filter(str.strip, lines), *extras]]


def test_there_is_one_for_each_python_from_the_first_that_is_supported():
    found = [file.stem.removeprefix("python") for file in FILES]
    assert found == [f"3.{minor}" for minor in range(11, 11 + len(found))]
    assert len(found) >= 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_required_has_a_version_that_will_do(file):
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    versions = {
        canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins
    }
    assert len(versions) == len(lines)
    python = file.stem.removeprefix("python")
    environment = default_environment() | {"python_version": python}
    environment |= {"sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}
    for each in required():
        if each.marker is None or each.marker.evaluate(environment):
            assert versions[canonicalize_name(each.name)] in each.specifier, each.name

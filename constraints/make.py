"""Writes the versions that a fresh environment gets today, for the Python that runs this.

    python3.13 constraints/make.py

makes ``constraints/python3.13.txt``, which ``pip install -c`` takes. All extras are resolved
together, in an environment of its own, and nothing is installed: of what pip would install, the
names and versions are written. Those of other systems' packages only are missing (on Linux those of
Windows), which then are not constrained.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "constraints" / f"python{sys.version_info.major}.{sys.version_info.minor}.txt"


def resolved(folder: Path, *requirements: str) -> dict[str, str]:
    """Versions by name that pip would install into a new environment in `folder`.

    Args:
        folder: may be filled.
        requirements: as pip takes them.

    Raises:
        subprocess.CalledProcessError: pip finds none; it says why.
    """
    venv.create(folder / "environment", with_pip=True)
    pip = [str(folder / "environment" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    report = folder / "report.json"
    subprocess.run([*pip, "--dry-run", "--report", report, *requirements], check=True, cwd=ROOT)
    found = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    # Of 2.14.1+cpu the part behind + says where a file is from, which 2.14.1 leaves open.
    return {each["name"]: each["version"].partition("+")[0] for each in found}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ",".join(project["optional-dependencies"])
    with tempfile.TemporaryDirectory() as folder:
        versions = resolved(Path(folder), "-r", "requirements-test.txt", "-e", f".[{extras}]")
    del versions[project["name"]]
    head = f"# Made by constraints/make.py with Python {sys.version.split()[0]}, {sys.platform}.\n"
    lines = [f"{name}=={versions[name]}\n" for name in sorted(versions, key=str.lower)]
    FILE.write_text(head + "".join(lines))
    print(f"{FILE.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    main()

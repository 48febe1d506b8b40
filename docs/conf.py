"""The site: ``python -m sphinx --fail-on-warning docs site``; works without a network."""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import mtp_jax  # noqa: E402
from mtp_jax.__main__ import COMMANDS  # noqa: E402

project = "mtp_jax"
version = release = mtp_jax.__version__
copyright = "the authors of mtp_jax, Apache 2.0"
html_theme = "furo"
html_title = "mtp_jax"
html_copy_source = False
extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["reference/modules.rst"]
myst_heading_anchors = 3

# Command lines define flags when they are imported, each for itself: the site has their docstrings.
apidoc_modules = [
    {
        "path": "../mtp_jax",
        "destination": "reference",
        "exclude_patterns": [f"../mtp_jax/{name}.py" for name in (*COMMANDS, "__main__")],
        "separate_modules": True,
        "module_first": True,
        "max_depth": 1,
        "automodule_options": {"members"},
    }
]
default_role = "py:obj"
# Errors are named by their package and by the module that they are in: either link will do.
suppress_warnings = ["ref.python"]
smartquotes = False  # they would make a dash of what begins a flag
toc_object_entries = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_default_options = {"ignore-module-all": True}  # each name where it is defined, only
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True


def _target(link: str, page: Path, folder: Path) -> str:
    """Where a link of a page that is read on GitHub leads in the site, from that page's folder."""
    path, _, anchor = link.partition("#")
    file = Path(os.path.normpath(page.parent / path))
    if re.match(r"[a-z]+:", link) or not path or not file.exists():
        return link
    if file == ROOT / "README.md":
        file = ROOT / "docs" / "index.md"
    if file.is_relative_to(ROOT / "mtp_jax"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if not (len(parts) == 2 and parts[1] in COMMANDS):
            file = ROOT / "docs" / "reference" / f"{'.'.join(parts).removesuffix('.__init__')}.rst"
    return os.path.relpath(file, folder) + (f"#{anchor}" if anchor else "")


def _is_folder(link: str, page: Path) -> bool:
    return not link.startswith("#") and (page.parent / link).is_dir() and "mtp_jax" not in link


def _read(app: Sphinx, name: str, content: list[str]) -> None:
    """The README is the first page; links to sources lead to the reference."""
    if name.startswith("reference/"):
        return
    text, page = content[0], ROOT / "docs" / f"{name}.md"
    if name == "index":
        page = ROOT / "README.md"
        text = page.read_text("utf-8") + text
    folder = (ROOT / "docs" / name).parent
    # The site has no page of a folder: what is linked stays as text.
    text = re.sub(
        r"\[([^\]]*)\]\(([^)\s]+)\)",
        lambda m: m[1] if _is_folder(m[2], page) else m[0],
        text,
    )
    content[0] = re.sub(
        r"(\]\()([^)\s]+)(\))", lambda m: m[1] + _target(m[2], page, folder) + m[3], text
    )


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what dataclasses and named tuples have by themselves."""
    made = str(getattr(obj, "__doc__", "")).startswith(("Alias for field number", "Returns a new"))
    return True if made else None


def _literal(text: str) -> str:
    """Blocks that a docstring indents are examples and tables: they stay as they are."""
    return re.sub(r"(?m)^(\S.*[^:\n]|\S.*[^:]:)\n\n(?=    \S)", r"\1\n\n::\n\n", text)


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """From our docstrings to what Napoleon reads."""
    if what == "module":
        lines[:] = _literal("\n".join(lines)).split("\n")
    # `one_word` names an argument or field nearby: no link to whatever else has that name.
    lines[:] = [re.sub(r"(?<![`:])`([a-z]+)`(?!`)", r"``\1``", line) for line in lines]
    # "width, height: in pixels" becomes an entry each.
    text = re.sub(
        r"(?m)^( +)([a-z]\w*(?:, [a-z]\w*)+): (.*(?:\n\1 +.*)*)",
        lambda m: "\n".join(f"{m[1]}{each}: {m[3]}" for each in m[2].split(", ")),
        "\n".join(lines),
    )
    lines[:] = text.split("\n")


class Command(SphinxDirective):
    """What a command's module says of itself; importing it would define its flags."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        file = ROOT / "mtp_jax" / f"{self.arguments[0]}.py"
        self.env.note_dependency(str(file))
        docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        return self.parse_text_to_nodes(_literal(docstring))


def setup(app: Sphinx) -> None:
    app.add_directive("command", Command)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before Napoleon
    app.connect("source-read", _read)
    app.connect("autodoc-skip-member", _skip)

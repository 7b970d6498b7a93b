"""Configuration of Sphinx; `make docs` builds with warnings as errors."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from sdekit import __version__

project = "sdekit"
author = "The sdekit authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "show-inheritance": True,
    "special-members": "__call__",
}
autodoc_inherit_docstrings = False  # torch's own are written for torch's own pages
autodoc_preserve_defaults = True
smartquotes = False  # alpha' is a derivative
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"sdekit {version}"


def escape(text: str) -> str:
    """Keep the stars, bars and underscores of plain text; `code` is code."""
    words = re.split(r"`([^`]+)`", text)
    words[::2] = [re.sub(r"[\\*|]|(?<=\w)_(?!\w)", r"\\\g<0>", plain) for plain in words[::2]]
    words[1::2] = [f"``{code}``\\ " for code in words[1::2]]
    return "".join(words)


def is_formula(line: str) -> bool:
    """Is this line set apart: indented, or with columns lined up by spaces?"""
    return line.startswith("    ") or "   " in line.strip()


def plain_to_rst(text: str) -> str:
    """Turn a docstring in plain text, with Google's sections, into reStructuredText that shows it as written."""
    blocks: list[str] = []
    in_section = False
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        in_section = bool(re.match(r"[A-Z]\w+:\n", paragraph)) or (in_section and paragraph.startswith(" "))
        if ">>> " in paragraph:
            blocks.append(paragraph)
        elif in_section:
            blocks.append(escape(paragraph))
        else:
            for formula, group in groupby(paragraph.split("\n"), is_formula):
                lines = list(group)
                blocks.append("::\n\n    " + "\n    ".join(lines) if formula else escape("\n".join(lines)))
    return "\n\n".join(blocks)


def setup(app: Any) -> None:
    """Read every docstring as plain text, before napoleon (priority 500) reads its sections."""

    def read(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        lines[:] = [*plain_to_rst("\n".join(lines)).split("\n"), ""]

    app.connect("autodoc-process-docstring", read, priority=400)

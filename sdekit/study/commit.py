"""Which sources a row was made by."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache
def commit() -> str | None:
    """Return the commit of sdekit's sources, with "-dirty" if they were changed; None if they are installed."""
    sources = Path(__file__).parents[2]
    if not (sources / ".git").exists():
        return None
    ask = ["git", "-C", str(sources), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

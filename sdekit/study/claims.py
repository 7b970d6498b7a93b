"""Claims: which process is at work on which cell, so that several can share the work."""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sdekit.study.storage import locked, storing

T = TypeVar("T")

BEAT = 5.0
"""The seconds between two signs of life."""

PAUSE = 0.2
"""The seconds between two looks at what another is at work on."""

STALE = 60.0
"""The seconds without one after which a claim is void."""


@dataclass(frozen=True)
class Claims:
    """The claims of one run, as files in a folder: a cell's holds who is at work on it, its age the last sign of life.

    A claim is void if its process has ended, seen at once on the same machine, or has given no sign of life for long,
    by the clock of the disk. Killing a process therefore needs no cleaning up.

    Args:
        folder: where the claims lie.
        run: the run's name; its attempts at a cell are counted.
    """

    folder: Path
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    @contextmanager
    def holding(self, id: str) -> Iterator[int]:
        """Hold a cell and yield the number of this run's attempts at it, this one included; 0 if another is at work.

        Raises:
            StorageError: the folder cannot be written.
        """
        attempt = self._take(id)
        if not attempt:
            yield 0
            return
        done = threading.Event()
        beat = threading.Thread(target=_beating, args=(self._file(id), done), daemon=True)
        beat.start()
        try:
            yield attempt
        finally:
            done.set()
            beat.join()
            self._file(id).unlink(missing_ok=True)

    def once(self, id: str, find: Callable[[], T | None], make: Callable[[], T]) -> T:
        """Return what is found or else made, and waited for where another is making it."""
        while True:
            with self.holding(id) as ours:
                found = find()
                if found is not None:
                    return found
                if ours:
                    return make()
            time.sleep(PAUSE)

    def left(self, id: str) -> bool:
        """Tell whether this run has begun a cell and not ended it, though nobody is at work on it."""
        claim = self._read(id)
        return claim is not None and claim.get("run") == self.run and self._void(id, claim)

    def _take(self, id: str) -> int:
        with storing(self.folder), self._alone():
            claim = self._read(id)
            if claim is not None and not self._void(id, claim):
                return 0
            again = claim is not None and claim.get("run") == self.run
            attempt = int(claim.get("attempt", 0)) + 1 if claim and again else 1
            with suppress(FileNotFoundError):
                self._file(id).unlink()
            owner = {"run": self.run, "attempt": attempt, "host": platform.node(), "pid": os.getpid()}
            with self._file(id).open("x", encoding="utf-8") as file:
                json.dump(owner, file)
        return attempt

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with locked(file):
                yield
        finally:
            os.close(file)

    def _file(self, id: str) -> Path:
        return self.folder / f"{id}.claim"

    def _read(self, id: str) -> dict[str, Any] | None:
        """Return who holds a cell, None if nobody does; of a claim whose writer was killed nothing is known."""
        try:
            claim = json.loads(self._file(id).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return claim if isinstance(claim, dict) else {}

    def _void(self, id: str, claim: dict[str, Any]) -> bool:
        if not claim:  # claims are written under the lock, so its writer is gone
            return True
        if claim.get("host") == platform.node() and not _alive(int(claim["pid"])):
            return True
        try:
            return time.time() - self._file(id).stat().st_mtime > STALE
        except FileNotFoundError:
            return True


def _beating(file: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):
            os.utime(file)


def _alive(pid: int) -> bool:
    """Tell whether a process of this machine may be running: one that has ended but is still listed is not."""
    if sys.platform == "win32":  # which has no way to ask that would do no harm
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # not a Linux
        return True
    return state not in ("Z", "X")

"""What lies beside the rows of a study: features, a few samples, fitted plans. Each file is whole or not there."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sdekit._atomic import replace

SHOWN = 64
"""The number of samples of each cell that are kept to be looked at."""


class StorageError(OSError):
    """What a study finds cannot be written, which is no fault of the cell."""


@dataclass(frozen=True)
class Store:
    """The folders beside the rows at `path`: path.features, path.samples and path.plans.

    Features are those of one cell by one extractor, (n, d); samples are the first 64 of a cell, (64, *shape). A file
    that is torn, altered or gone counts as not there.
    """

    path: Path

    def folder(self, name: str) -> Path:
        """Return one of the folders: study.jsonl has study.jsonl.features, and so on."""
        return self.path.with_name(f"{self.path.name}.{name}")

    def features(self, id: str, extractor: str) -> Tensor | None:
        """Return the features of a cell by the extractor of that fingerprint, None if there are none."""
        return _read(self.folder("features") / f"{id}-{extractor}.safetensors")

    def keep_features(self, id: str, extractor: str, features: Tensor) -> None:
        """Store the features of a cell."""
        write(self.folder("features") / f"{id}-{extractor}.safetensors", _packed(features))

    def samples(self, id: str) -> Tensor | None:
        """Return the first samples of a cell, None if there are none."""
        return _read(self.folder("samples") / f"{id}.safetensors")

    def keep_samples(self, id: str, samples: Tensor) -> None:
        """Store the first samples of a cell."""
        write(self.folder("samples") / f"{id}.safetensors", _packed(samples[:SHOWN]))

    def plan(self, id: str) -> dict[str, Any] | None:
        """Return what was stored about a fitted plan, None if nothing was."""
        try:
            found = json.loads((self.folder("plans") / f"{id}.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep_plan(self, id: str, plan: Mapping[str, Any]) -> None:
        """Store a fitted plan."""
        write(self.folder("plans") / f"{id}.json", json.dumps(plan, allow_nan=False).encode())


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn the errors of writing to a path into one that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"A study must be able to write to {path}; it cannot ({error.strerror or error}). Nothing that was there "
            "is lost: make room or give another path, and run it again."
        ) from error


def write(path: Path, content: bytes) -> None:
    """Write all of a file or nothing.

    Raises:
        StorageError: it cannot be written; what was there is untouched.
    """
    with storing(path):
        replace(path, content)


@contextmanager
def locked(file: int) -> Iterator[None]:
    """Hold an open file against all other processes that ask for it in the same way."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_LOCK, 1)
        try:
            yield
        finally:
            msvcrt.locking(file, msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _packed(x: Tensor) -> bytes:
    x = x.detach().cpu().contiguous()
    return save({"data": x, "sha256": _digest(x)})


def _read(path: Path) -> Tensor | None:
    try:
        found = load(path.read_bytes())  # read, not mapped into memory: a file that shrinks would end the process
        x = found["data"]
        return x if torch.equal(found["sha256"], _digest(x)) else None
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def _digest(x: Tensor) -> Tensor:
    """Return the SHA-256 of a tensor's numbers, as 32 bytes."""
    return torch.tensor(
        list(hashlib.sha256(x.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()), dtype=torch.uint8
    )

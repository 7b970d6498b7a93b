"""A folder of checkpoints: the last few of a training, of which the newest whole one is found again."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from sdekit.training.checkpoint import read
from sdekit.training.state import training
from sdekit.training.trainer import Trainer

_NAME = re.compile(r"step-\d{9}\.safetensors")
_LEFT = re.compile(r"\.step-\d{9}\.safetensors(\.json)?\.[0-9a-f]{8}")  # by a save that was killed


class Checkpoints:
    """The checkpoints of a training in one folder, the last `keep` of them:

        checkpoints = Checkpoints("runs/digits")
        checkpoints.resume(trainer)                  # where it stopped; from the start if it never ran
        for progress in trainer:
            if progress.step % 1000 == 0:
                checkpoints.save(trainer)

    Older files are removed once the new one is whole, so at any moment at least one whole checkpoint is there.

    Args:
        folder: where they are; it is made by the first save.
        keep: how many to keep.

    Raises:
        ValueError: keep is not positive.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"At least one checkpoint must be kept; got keep={keep}.")
        self.folder, self.keep = Path(folder), keep

    def paths(self) -> list[Path]:
        """Return the files, whole or not, the newest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else []
        return sorted((path for path in found if _NAME.fullmatch(path.name)), reverse=True)

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint, or None if there is none; of those that are not whole a warning tells."""
        for path in self.paths():
            try:
                config, _ = read(path)
                training(config, path)
            except (ValueError, OSError) as error:
                warnings.warn(f"A checkpoint is passed over for an older one: {error}", stacklevel=2)
            else:
                return path
        return None

    def save(self, trainer: Trainer) -> Path:
        """Store a trainer, then remove what is older than the last `keep`. Of many ranks all must call this.

        Raises:
            FloatingPointError, ValueError, TypeError, OSError: as `Trainer.save`; all old checkpoints are still there.
        """
        path = self.folder / f"step-{trainer.step:09d}.safetensors"
        trainer.save(path)
        if trainer.devices.rank == 0:
            self._clear(path)
        return path

    def _clear(self, newest: Path) -> None:
        """Remove what is older than a checkpoint that is whole: all but the last few, and what killed saves left."""
        for old in [path for path in self.paths() if path.name < newest.name][self.keep - 1 :]:
            old.unlink(missing_ok=True)
        written = newest.stat().st_mtime
        for path in self.folder.iterdir():
            alone = path.suffix == ".json" and _NAME.fullmatch(path.stem) and not path.with_suffix("").exists()
            if alone or (_LEFT.fullmatch(path.name) and path.stat().st_mtime < written):
                path.unlink(missing_ok=True)

    def resume(self, trainer: Trainer) -> Path | None:
        """Bring a trainer to where the newest whole checkpoint is; without one leave it as it is.

        Raises:
            ValueError: the checkpoint is of another training: see `Trainer.restore`.
        """
        path = self.newest()
        if path is not None:
            trainer.restore(path)
        return path

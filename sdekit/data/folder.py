"""A folder of image files as data."""

from __future__ import annotations

from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sdekit.data.images import Images, split

__all__ = ["folder", "pixels"]

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
_READABLE = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # others have more than 8 bits


def folder(path: str | PathLike[str], size: int, test: int, channels: int = 3) -> Images:
    """Return the image files of a folder, or of its sub-folders, which then are the classes in order of their names.

    Of every image the largest square about its centre is taken and reduced to size x size pixels (Pillow's Lanczos
    filter); none is enlarged. A photograph is turned as its camera says, what is transparent becomes white, and of
    several frames the first counts. Files that do not end like images are passed over. All of it is kept in memory, 4
    bytes a value.

    Args:
        path: the folder.
        size: height and width of the images.
        test: how many of them to hold out to test with, stratified and with a fixed seed.
        channels: 3 for colour, 1 for grey.

    Raises:
        ImportError: Pillow is missing.
        ValueError: a file is broken, smaller than `size`, or has more than 8 bits a channel (all such are named); there
            are no images, or images beside sub-folders with images.
    """
    if channels not in (1, 3) or size < 1:
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), size at least 1; got {channels} and {size}.")
    files, labels = _files(Path(path))
    x = np.empty((len(files), channels, size, size), dtype=np.uint8)
    faults = []
    for i, file in enumerate(files):
        try:
            x[i] = pixels(file, channels, size)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all of these for a broken file
            faults.append(f"{file}: {error}")
    if faults:
        more = f"\nand {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(
            f"All image files must be readable; {len(faults)} of {len(files)} are not. Mend or remove them:\n"
            + "\n".join(faults[:10])
            + more
        )
    return split(torch.from_numpy(x) / 127.5 - 1, torch.tensor(labels, device="cpu"), test, levels=256)


def pixels(path: Path, channels: int, size: int | None = None) -> NDArray[np.uint8]:
    """Return an image file as bytes, (channels, height, width): its central square at size x size, or all of it.

    Raises:
        ImportError: Pillow is missing.
        OSError, SyntaxError, ValueError: the file cannot be read, or as `folder` says.
    """
    try:
        pillow, operations = import_module("PIL.Image"), import_module("PIL.ImageOps")
    except ImportError as error:
        raise ImportError('Image files need Pillow: pip install "sdekit[data]"') from error
    with pillow.open(path) as file:
        if file.mode not in _READABLE:
            raise ValueError(f"it must have 8 bits a channel; its mode is {file.mode}. Convert it.")
        image: Any = operations.exif_transpose(file).convert("RGBA")
    white = pillow.new("RGBA", image.size, "white")
    image = pillow.alpha_composite(white, image).convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = _central(image, size, pillow.Resampling.LANCZOS)
    values = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(values[None] if channels == 1 else values.transpose(2, 0, 1))


def _central(image: Any, size: int, resampling: Any) -> Any:
    width, height = image.size
    side = min(width, height)
    if side < size:
        raise ValueError(f"it must have at least {size} x {size} pixels; it has {width} x {height}.")
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), resampling)


def _files(path: Path) -> tuple[list[Path], list[int]]:
    """Return the image files, in the order of their names, and the number of the sub-folder each is in."""
    if not path.is_dir():
        raise ValueError(f"path must be a folder; {path} is not. Check it.")
    here = _images(path)
    inside = {sub: found for sub in sorted(path.iterdir()) if sub.is_dir() and (found := _images(sub))}
    if bool(here) == bool(inside):
        got = "images beside sub-folders of images" if here else "no image"
        raise ValueError(f"{path} must hold images, or sub-folders of images, one a class; it holds {got}.")
    if here:
        return here, [0] * len(here)
    labelled = [(file, label) for label, found in enumerate(inside.values()) for file in found]
    return [file for file, _ in labelled], [label for _, label in labelled]


def _images(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS and file.is_file())

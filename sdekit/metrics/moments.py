"""Number, mean and scatter of features: what a Frechet distance needs to know of a set, and where it comes from."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit._atomic import replace
from sdekit.metrics.estimate import Extractor
from sdekit.metrics.features import points, rows

__all__ = ["FeatureStatistics", "read_reference"]

_BLOCK = 8192  # rows that are in float64 at one time
_ROUNDING = 1e-5  # of the largest entry: what a covariance in float32 leaves


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Number, mean and scatter of a set of features: all that the Frechet distance needs to know of it.

        mean = 1/n sum_i x_i,    scatter = sum_i (x_i - mean) (x_i - mean)^T

    Kept in float64 on the CPU. Statistics of parts merge into those of the whole, in whatever parts it comes.

    Args:
        n: number of samples, at least 1; None if a published file does not say, whose `scatter` is the covariance.
        mean: shape (d,), float64.
        scatter: shape (d, d), float64, symmetric.
        extractor: the fingerprint of the map that made the features, or None; only statistics of one map are compared.
        data: the fingerprint of the samples, whatever their order and batches, or None.

    Raises:
        ValueError: n < 1; the shapes do not fit; a number is not finite.
        TypeError: `mean` or `scatter` is not a float64 tensor.

    >>> FeatureStatistics.of(torch.tensor([[0.0], [2.0]])).covariance
    tensor([[2.]], dtype=torch.float64)
    """

    n: int | None
    mean: Tensor
    scatter: Tensor
    extractor: str | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if (self.n is not None and self.n < 1) or self.mean.shape != (d,) or self.scatter.shape != (d, d):
            raise ValueError(
                "Statistics need n >= 1, a mean of shape (d,) and a scatter of shape (d, d); got "
                f"n = {self.n}, {tuple(self.mean.shape)}, {tuple(self.scatter.shape)}. Gather them with `of`."
            )
        if self.mean.dtype != torch.float64 or self.scatter.dtype != torch.float64:
            raise TypeError(
                f"Statistics must be float64; got {self.mean.dtype} and {self.scatter.dtype}. "
                "Sum in float64 from the start, as FeatureStatistics.of does."
            )
        if not (self.mean.isfinite().all() and self.scatter.isfinite().all()):
            raise ValueError("Statistics must be finite; got nan or inf. Check the features.")

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Gather the statistics of features, shape (n, d); more axes are flattened into d.

        Raises:
            ValueError: `features` is empty or not finite.
        """
        return reduce(cls.merge, (cls._of(points(part)) for part in rows(features).split(_BLOCK)))

    @classmethod
    def measured(cls, extractor: Extractor, samples: Tensor) -> FeatureStatistics:
        """Gather the statistics of the features of samples, (n, *shape), with the fingerprints of both.

        Raises:
            ValueError: samples or features are empty or not finite.
        """
        found = cls.of(extractor(samples))
        return dataclasses.replace(found, extractor=extractor.fingerprint, data=_content(rows(samples)))

    @classmethod
    def _of(cls, x: Tensor) -> FeatureStatistics:
        mean = x.mean(dim=0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Return the statistics of both sets together.

            mean = mean_a + (n_b / n) delta,   scatter = scatter_a + scatter_b + (n_a n_b / n) delta delta^T

        with n = n_a + n_b and delta = mean_b - mean_a.

        Raises:
            ValueError: the features have different dimensions, or are those of different maps; an n is not known.

        Reference: Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance", eq. 1.5b.
        """
        self.comparable(other)
        if self.n is None or other.n is None:
            raise ValueError("Statistics merge by their numbers of samples; got one without. State n where it is read.")
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + (other.n / n) * delta
        scatter = self.scatter + other.scatter + (self.n * other.n / n) * torch.outer(delta, delta)
        return FeatureStatistics(n, mean, scatter, self.extractor, _both(self.data, other.data))

    @cached_property
    def covariance(self) -> Tensor:
        """The unbiased covariance, scatter / (n - 1), shape (d, d).

        Raises:
            ValueError: n < 2, where there is none.
        """
        if self.n is None:
            return self.scatter
        if self.n < 2:
            raise ValueError(f"A covariance needs at least 2 samples; got n = {self.n}. Draw more.")
        return self.scatter / (self.n - 1)

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """The standard deviations along the principal axes, (r,), and the axes, (d, r), with r the rank.

        Raises:
            ValueError: n < 2; the scatter has negative eigenvalues.
        """
        values, vectors = torch.linalg.eigh(self.covariance)
        eps, largest = torch.finfo(values.dtype).eps, float(values.abs().max())
        if float(values[0]) < -math.sqrt(eps) * largest:  # more than any summation leaves
            raise ValueError(
                f"A covariance must not have negative eigenvalues; got {float(values[0]):.3g} next to "
                f"{float(values[-1]):.3g}. Gather the statistics with FeatureStatistics.of and merge."
            )
        kept = values > len(values) * eps * largest  # eigh cannot tell the others from 0, and some come out below
        return values[kept].sqrt(), vectors[:, kept]

    def comparable(self, other: FeatureStatistics) -> None:
        """Make sure that both are statistics of the same features.

        Raises:
            ValueError: the fingerprints of the maps differ, or the dimensions.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"Features must have one dimension; got {len(self.mean)} and {len(other.mean)}. Use one map for both."
            )
        if self.extractor != other.extractor:
            raise ValueError(
                f"Features must come from one extractor; got {self.extractor} and {other.extractor}. Gather both with "
                "one, or state that of a file where it is read: read_reference(path, extractor)."
            )

    def save(self, path: str | Path) -> None:
        """Write them to an npz file: mu, sigma, as published files have them, and a JSON text of the rest.

        All of the file is written or nothing.

        Raises:
            ValueError: n < 2, where there is no covariance.
            OSError: the file cannot be written.
        """
        path = Path(path)
        about = json.dumps({"n": self.n, "extractor": self.extractor, "data": self.data})
        arrays: dict[str, Any] = {"mu": self.mean.numpy(), "sigma": self.covariance.numpy(), "json": np.array(about)}
        file = io.BytesIO()
        np.savez(file, **arrays)
        replace(path, file.getvalue())


def read_reference(path: str | Path, extractor: Extractor | None = None, n: int | None = None) -> FeatureStatistics:
    """Read statistics that `save` wrote, or published ones: an npz file with arrays mu, (d,), and sigma, (d, d).

    These are the names that EDM, pytorch-fid, clean-fid and TTUR use. Nothing in the file is executed.

    Args:
        path: the file.
        extractor: the map that made the features, if the file does not say; whoever reads a published file vouches
            for it.
        n: the number of samples, if the file does not say; without it the statistics can be compared, not merged.

    Raises:
        ValueError: the file is no such file, or says otherwise than `extractor` or `n`.
        OSError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {key: file[key] if key in ("mu", "sigma", "json") else None for key in file.files}
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be an npz file of arrays; got something else ({error}).") from error
    if not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(f"{path} must hold the arrays mu and sigma; got {sorted(arrays)}. Is it the right file?")
    for key in ("mu", "sigma"):
        if arrays[key].dtype.kind not in "fiu":
            raise ValueError(f"{path} must hold real numbers; got {key} of dtype {arrays[key].dtype}.")
    mean, covariance = (torch.from_numpy(arrays[key].astype(np.float64)) for key in ("mu", "sigma"))
    if covariance.ndim == 2 and len(covariance) == len(covariance.T):
        apart = float((covariance - covariance.T).abs().max())
        if apart > _ROUNDING * float(covariance.abs().max()):
            raise ValueError(
                f"{path} must hold a covariance sigma, which is symmetric; got entries that differ by {apart:.3g} from "
                "those across the diagonal. Is it the right file?"
            )
    about: dict[str, Any] = json.loads(str(arrays["json"])) if "json" in arrays else {}
    given = {"n": n, "extractor": extractor.fingerprint if extractor else None}
    for key, value in given.items():
        if value is not None and about.get(key, value) not in (None, value):
            raise ValueError(f"{path} says {key} = {about[key]}; got {value}. Leave it out, or read another file.")
        about[key] = about.get(key) if value is None else value
    number = about["n"]
    scatter = covariance if number is None else covariance * (number - 1)
    return FeatureStatistics(number, mean, scatter, about["extractor"], about.get("data"))


def _content(x: Tensor) -> str:
    """Return a fingerprint of points that neither their order nor their batches change: a sum of a hash of each."""
    bytes_of = x.cpu().contiguous().view(torch.uint8).numpy()
    total = sum(int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:8], "big") for row in bytes_of)
    return f"{total % 2**64:016x}"


def _both(a: str | None, b: str | None) -> str | None:
    return None if a is None or b is None else f"{(int(a, 16) + int(b, 16)) % 2**64:016x}"

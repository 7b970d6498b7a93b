"""The features of the published FID: the Inception network of 2015 after TensorFlow 1's resizing, by torch-fidelity."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["Inception"]

BATCH = 64
"""How many images the network is given at a time, as torch-fidelity does; their activations take 2 GB."""


class Inception(nn.Module):
    """The pooled layer of Inception-v3 as a feature map: images (n, 1 or 3, height, width) in [-1, 1] to (n, 2048).

    Values are clamped and rounded to 8 bits, grey is repeated to three channels, and torch-fidelity does the rest as
    the published FID does: bilinear to 299x299 as TensorFlow 1 resizes, and the weights of 2015-12-05. Then
    `FrechetDistance(Inception(), real)` is the FID and `KernelDistance(Inception(), real)` the KID.

    Args:
        weights: torch-fidelity's file of weights, which it reads by `torch.load`: take it from nowhere else. By
            default torch-fidelity downloads it.

    Raises:
        ImportError: torch-fidelity is missing or cannot be imported (it needs a torchvision that fits torch).
        FileNotFoundError: there is no such file.

    References:
        Heusel et al. (2017), arXiv:1706.08500. For the resizing: Parmar et al. (2022), arXiv:2104.11222, section 3.
    """

    name = "Inception"

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        try:
            network = import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        except Exception as error:  # a torchvision that does not fit torch raises what it likes
            needs = 'torch-fidelity, and a torchvision that fits torch: pip install "sdekit[fid]"'
            raise ImportError(f"Inception needs {needs} ({error})") from error
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"{weights} must be torch-fidelity's file of Inception weights; there is none.")
        path = None if weights is None else str(weights)
        with torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            self.network = network("inception-v3-compat", ["2048"], feature_extractor_weights_path=path).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, (n, 2048), of images x, (n, 1 or 3, height, width) in [-1, 1].

        Raises:
            ValueError: x has another shape.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"Images must have shape (n, 1 or 3, height, width); got {tuple(x.shape)}. Reshape them.")
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return torch.cat([self.network(part)[0] for part in pixels.split(BATCH)])

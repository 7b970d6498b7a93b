"""A classifier of the 8x8 digits: the feature map for Frechet distances, and the judge of which digit it is.

It is trained where it is first needed, in seconds, and kept in $SDEKIT_CACHE (~/.cache/sdekit if that is not
set), in a file named by the hash of all that determines it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.data import Images, digits

__all__ = ["DigitClassifier", "DigitFeatures", "digit_classifier", "digit_features"]


class DigitClassifier(nn.Module):
    """A small convolutional network from digits, (n, 1, 8, 8) in [-1, 1], to class logits, (n, 10).

    `features` gives its penultimate layer, (n, 32). `digit_classifier` returns a trained one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 32),
            nn.SiLU(),
        )
        self.head = nn.Linear(32, 10)

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate layer, (n, 32), of digits x, (n, 1, 8, 8) in [-1, 1].

        Raises:
            ValueError: x has another shape.
        """
        if x.shape[1:] != (1, 8, 8):
            raise ValueError(f"Digits must have shape (n, 1, 8, 8); got {tuple(x.shape)}. Reshape them.")
        y: Tensor = self.body(x.to(self.head.weight))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (n, 10); their argmax is the digit."""
        y: Tensor = self.head(self.features(x))
        return y


class DigitFeatures(nn.Module):
    """The penultimate layer of a digit classifier as a feature map: (n, 1, 8, 8) in [-1, 1] to (n, 32)."""

    name = "digits"

    def __init__(self, classifier: DigitClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of digits x."""
        return self.classifier.features(x)


def digit_features() -> DigitFeatures:
    """Return the feature map in which Frechet distances between sets of 8x8 digits are measured.

    Such a distance is NOT the FID. FID is measured in the Inception network's features of images resized to
    299x299; this is another network, another dimension and another scale, and cannot be compared with any
    published FID. Nor can it be compared across machines or releases of torch, because the network is trained
    on the spot: next to it, give the distance of the 397 test digits from the 1,400 training digits.

    That floor is low, as both sets hold the classes in the same proportions. Samples drawn without labels do
    not: even 397 random draws of the training digits themselves are, on average, twice as far from them. Draw
    samples with the labels of the test digits, or many more of them.

    Raises:
        ImportError: scikit-learn, which holds the digits, is missing.
        OSError: the cache directory cannot be written.

    >>> metric = FrechetDistance(digit_features(), digits().train)  # doctest: +SKIP
    """
    return DigitFeatures(digit_classifier())


def digit_classifier() -> DigitClassifier:
    """Return the classifier behind `digit_features`, in evaluation mode: from the cache, or else trained now.

    The file's name holds a hash of the training digits, the network, its training and torch's version; the
    file holds one of its weights. If it is torn or altered, the network is trained and written again.

    Raises:
        ImportError: scikit-learn, which holds the digits, is missing.
        OSError: the cache directory cannot be written.
    """
    with torch.inference_mode(False):  # else its weights could never take part in a gradient
        data = digits()
        path = _cache() / f"digits-{_recipe_hash(data)}.safetensors"
        weights = _read(path)
        if weights is None:
            weights = _train(data)
            _write(path, weights)
        classifier = _untrained()
        classifier.load_state_dict(weights, assign=True)
        return classifier.requires_grad_(False).eval()


def _untrained() -> DigitClassifier:
    """Return a classifier whose weights take no memory and no random numbers, for others to fill."""
    with torch.device("meta"):
        return DigitClassifier()


def _train(data: Images) -> dict[str, Tensor]:
    """Train on the training digits with a little noise: AdamW, a linear decay of the rate, a fixed seed."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    steps, batch, rate, noise = 600, 100, 3e-3, 0.1
    with torch.enable_grad(), torch.device("cpu"):
        net = _untrained().to_empty(device="cpu").to(torch.float32)
        for weight in net.parameters():
            if weight.ndim > 1:
                nn.init.kaiming_normal_(weight, generator=generator)
            else:
                nn.init.zeros_(weight)
        optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            i = torch.randint(len(data.train), (batch,), generator=generator)
            x = data.train[i]
            x = x + noise * torch.randn(x.shape, generator=generator)
            loss = F.cross_entropy(net(x), data.train_labels[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: weight.detach() for name, weight in net.state_dict().items()}


def _recipe_hash(data: Images) -> str:
    """Return the hash of all that determines the weights: torch, data, and this file for the rest."""
    h = hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode())
    for tensor in (data.train, data.train_labels):
        h.update(tensor.numpy().tobytes())
    return h.hexdigest()[:16]


def _digest(weights: dict[str, Tensor]) -> Tensor:
    """Return the SHA-256 of names and weights, as the 32 bytes of a tensor."""
    h = hashlib.sha256()
    for name in sorted(weights):
        h.update(name.encode() + weights[name].numpy().tobytes())
    return torch.tensor(list(h.digest()), dtype=torch.uint8, device="cpu")


def _cache() -> Path:
    return Path(os.environ.get("SDEKIT_CACHE") or Path.home() / ".cache" / "sdekit")


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return the weights in the file, or None if it is missing, torn or not what was written."""
    try:
        # Read, not mapped into memory: a file that shrinks under its map ends the process.
        weights = load(path.read_bytes())
        digest = weights.pop("sha256")
    except (FileNotFoundError, SafetensorError, KeyError):
        return None
    return weights if torch.equal(digest, _digest(weights)) else None


def _write(path: Path, weights: dict[str, Tensor]) -> None:
    """Write all of the file or nothing: to a neighbour first, which then takes its name."""
    content = save({**weights, "sha256": _digest(weights)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OSError(
            f"The trained classifier must be stored; {path.parent} cannot be written ({error}). "
            "Set SDEKIT_CACHE to a directory that can."
        ) from error

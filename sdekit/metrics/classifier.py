"""A classifier of labelled images: the feature map for Frechet distances, and the judge of what an image shows.

It is trained where it is first needed, in seconds, and kept in $SDEKIT_CACHE (~/.cache/sdekit if that is not
set), in a file named by the hash of all that determines it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit._atomic import replace
from sdekit.data import Images

__all__ = ["ImageClassifier", "ImageFeatures", "image_classifier", "image_features"]


class ImageClassifier(nn.Module):
    """A small convolutional network from images, (n, *shape) in [-1, 1], to class logits, (n, classes).

    Its convolutions halve the image until 7 pixels a side or fewer are left. `features` gives its penultimate
    layer, (n, 32). `image_classifier` returns a trained one.

    Args:
        shape: shape of one image, (channels, height, width).
        classes: number of classes.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = self.shape = shape
        before, after, stride = channels, 32, 1 if max(height, width) <= 14 else 2
        layers: list[nn.Module] = []
        while not layers or max(height, width) > 7:
            layers += [nn.Conv2d(before, after, 3, padding=1, stride=stride), nn.SiLU()]
            height, width = -(-height // stride), -(-width // stride)
            before, after, stride = after, 64, 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width, 32), nn.SiLU())
        self.head = nn.Linear(32, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate layer, (n, 32), of images x, (n, *shape) in [-1, 1].

        Raises:
            ValueError: x has another shape.
        """
        if x.shape[1:] != self.shape:
            expected = ", ".join(["n", *map(str, self.shape)])
            raise ValueError(f"Images must have shape ({expected}); got {tuple(x.shape)}. Reshape them.")
        y: Tensor = self.body(x.to(self.head.weight))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (n, classes); their argmax is the class."""
        y: Tensor = self.head(self.features(x))
        return y


class ImageFeatures(nn.Module):
    """The penultimate layer of a classifier as a feature map: (n, *shape) in [-1, 1] to (n, 32).

    Args:
        classifier: the classifier.
        name: the label of the map in a table.
    """

    def __init__(self, classifier: ImageClassifier, name: str = "classifier") -> None:
        super().__init__()
        self.classifier, self.name = classifier, name

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of images x."""
        return self.classifier.features(x)


def image_features(data: Images) -> ImageFeatures:
    """Return the feature map in which Frechet distances between sets of images like `data` are measured.

    Such a distance is NOT the FID. FID is measured in the Inception network's features of images resized to
    299x299; this is another network, another dimension and another scale, and cannot be compared with any
    published FID. Nor can it be compared across machines or releases of torch, because the network is trained
    on the spot: next to it, give the distance of the test images from the training images.

    That floor is low if both sets hold the classes in the same proportions. Samples drawn without labels do
    not: draw samples with the labels of the test images, or many more of them.

    Raises:
        ValueError: the data have one class only.
        OSError: the cache directory cannot be written.

    >>> metric = FrechetDistance(image_features(mnist()), mnist().train)  # doctest: +SKIP
    """
    return ImageFeatures(image_classifier(data))


def image_classifier(data: Images) -> ImageClassifier:
    """Return a classifier of images like `data`, in evaluation mode: from the cache, or else trained now.

    On one core that takes 3 seconds for 8x8 digits and 25 for 28x28 ones, of which it knows 98%. The file's name
    holds a hash of the training images, the network, its training and torch's version; the file holds one of its
    weights. If it is torn or altered, the network is trained and written again.

    Raises:
        ValueError: the data have one class only.
        OSError: the cache directory cannot be written.
    """
    if data.classes < 2:
        raise ValueError("A classifier needs images of at least 2 classes; these have 1. Give other features.")
    with torch.inference_mode(False):  # else its weights could never take part in a gradient
        size = "x".join(map(str, data.shape))
        path = _cache() / f"classifier-{size}-{_recipe_hash(data)}.safetensors"
        weights = _read(path)
        if weights is None:
            weights = _train(data)
            _write(path, weights)
        classifier = _untrained(data)
        classifier.load_state_dict(weights, assign=True)
        return classifier.requires_grad_(False).eval()


def _untrained(data: Images) -> ImageClassifier:
    """Return a classifier whose weights take no memory and no random numbers, for others to fill."""
    with torch.device("meta"):
        return ImageClassifier(data.shape, data.classes)


def _train(data: Images) -> dict[str, Tensor]:
    """Train on the training images, a little moved and noisy: AdamW, a linear decay of the rate, a fixed seed.

    Larger images get more steps, 75 a pixel of a side, and are moved further, up to a 14th of a side.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    side = max(data.shape[1:])
    steps, batch, rate, noise = 75 * side, 100, 3e-3, 0.1
    with torch.enable_grad(), torch.device("cpu"):
        net = _untrained(data).to_empty(device="cpu").to(torch.float32)
        for weight in net.parameters():
            if weight.ndim > 1:
                nn.init.kaiming_normal_(weight, generator=generator)
            else:
                nn.init.zeros_(weight)
        optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            i = torch.randint(len(data.train), (batch,), generator=generator)
            x = _moved(data.train[i], side // 14, generator)
            x = x + noise * torch.randn(x.shape, generator=generator)
            loss = F.cross_entropy(net(x), data.train_labels[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: weight.detach() for name, weight in net.state_dict().items()}


def _moved(x: Tensor, furthest: int, generator: torch.Generator) -> Tensor:
    """Return images moved by up to `furthest` pixels, each by its own, with their borders drawn out."""
    if furthest == 0:
        return x
    n, _, height, width = x.shape
    down, right = torch.randint(-furthest, furthest + 1, (2, n, 1), generator=generator)
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    moved = x.movedim(1, -1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.movedim(-1, 1)


def _recipe_hash(data: Images) -> str:
    """Return the hash of all that determines the weights: torch, data, and this file for the rest."""
    h = hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode())
    for tensor in (data.train, data.train_labels):
        h.update(repr(tensor.shape).encode() + tensor.contiguous().numpy().tobytes())
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
    """Store the weights, all or nothing."""
    content = save({**weights, "sha256": _digest(weights)})
    try:
        replace(path, content)
    except OSError as error:
        raise OSError(
            f"The trained classifier must be stored; {path.parent} cannot be written ({error}). "
            "Set SDEKIT_CACHE to a directory that can."
        ) from error

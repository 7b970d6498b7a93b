"""Histograms of what samples of several sets were scored at, one over the other, each named at its mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which every kind of colour vision tells apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_BINS = 40


def draw(sets: Mapping[str, Tensor], label: str = "bits per dimension") -> Figure:
    """Return the figure of the values of every set, shape (n,) each, in bins shared by all.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plot() needs matplotlib: pip install "sdekit[plot]"') from error
    edges = np.histogram_bin_edges(torch.cat(list(sets.values())).numpy(), _BINS).tolist()
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for k, (name, of_set) in enumerate(sets.items()):
        colour = _COLOURS[k % len(_COLOURS)]
        mean = float(of_set.mean())
        axes.hist(of_set.tolist(), bins=edges, color=colour, alpha=0.55, label=f"{name}: mean {mean:.3f}")
        axes.axvline(mean, color=colour, linewidth=1.4)
    axes.set(xlabel=label, ylabel="samples")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure

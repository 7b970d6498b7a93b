"""Torch's global generators: seeded for a step, and left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_globally(seed: int, device: torch.device) -> None:
    """Seed torch's global generators, from which dropout and data that is made on the way draw."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed % 2**64)
    torch.default_generator.manual_seed(seed % 2**64)


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were."""
    if device.type == "cuda":
        with torch.random.fork_rng(devices=[device]):
            yield
    else:
        state = torch.random.get_rng_state()
        try:
            yield
        finally:
            torch.random.set_rng_state(state)

"""What every test stands on: determinism, one thread, an untouched global generator."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# A busy machine is slow, not wrong: neither a deadline nor a slow draw may fail a test.
settings.register_profile(
    "ci", max_examples=50, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("nightly", settings.get_profile("ci"), max_examples=1000, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread per process: sums come out the same everywhere, and xdist's workers do not fight."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def global_rng_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing in sdekit may draw from torch's global generator, so no test may see it moved."""
    before = torch.random.get_rng_state()
    yield
    moved = not torch.equal(before, torch.random.get_rng_state())
    torch.random.set_rng_state(before)
    if moved and request.node.get_closest_marker("uses_global_rng") is None:
        pytest.fail(
            "torch's global generator was used. Draw from a torch.Generator of your own, build networks "
            "under torch.random.fork_rng(); if the test must use the global one, mark it uses_global_rng.",
            pytrace=False,
        )

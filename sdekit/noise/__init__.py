"""The noise of a run: keyed by sample and step, or increments of one Brownian path shared by all step counts.

Both are computed from counters by a hash, on the device of the state, so a sample's noise depends on nothing but the
seed, the sample's number and the step (or the time): not on the batch, its order, the rank, or other draws.
"""

from sdekit.noise.brownian import BrownianPath
from sdekit.noise.hashing import content, hashed, normals, standard_normal
from sdekit.noise.source import Draw, Keyed, Noise

__all__ = ["BrownianPath", "Draw", "Keyed", "Noise", "content", "hashed", "normals", "standard_normal"]

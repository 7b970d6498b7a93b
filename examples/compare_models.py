"""Which of two models finds held-out digits likelier? Sample by sample, with a 95% interval, from files that resume."""

from pathlib import Path

import torch

from sdekit import VP, Gaussian
from sdekit.data import digits
from sdekit.demo import LEVELS, train
from sdekit.study.scoring import Scoring

torch.set_num_threads(1)
data = digits()
models = {
    "network": train(Path("runs/example.safetensors"), steps=500),  # seconds; it is read back the next time
    "Gaussian": Gaussian.fit(VP(), torch.cat([LEVELS.apply(data.train, seed) for seed in range(4)])),
}

scores = {}
for name, model in models.items():
    scoring = Scoring(model, {"test digits": data.test}, LEVELS, moments=data.train)
    scores[name] = scoring.run(f"runs/{name}.jsonl", count=60)


def told(mean):
    return f"{mean.value:.2f}, 95% interval {mean.low:.2f} to {mean.high:.2f}"


ours, theirs = (scores[name].mean("test digits", "bits_per_dim") for name in models)
gap = scores["network"].difference(scores["Gaussian"], "test digits", "bits_per_dim")
print(f"bits per dimension, network:  {told(ours)}")
print(f"bits per dimension, Gaussian: {told(theirs)}")
print(f"the network's less the Gaussian's, digit by digit: {told(gap)}")
apart = ((ours.high - ours.low) ** 2 + (theirs.high - theirs.low) ** 2) ** 0.5
print("the pairs make the interval narrower:", gap.high - gap.low < apart)
print("the network is the better model:", gap.high < 0)

# expected:
# bits per dimension, network:  2.70, 95% interval 2.64 to 2.76
# bits per dimension, Gaussian: 2.91, 95% interval 2.86 to 2.97
# the network's less the Gaussian's, digit by digit: -0.21, 95% interval -0.26 to -0.17
# the pairs make the interval narrower: True
# the network is the better model: True

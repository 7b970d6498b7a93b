"""Running the probability flow, or the reverse SDE, with steps chosen on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit.adaptive.batch import finite, of_samples
from sdekit.adaptive.embedded import Embedded
from sdekit.adaptive.outcome import Adapted, Control, Status
from sdekit.grid import Times
from sdekit.noise import Keyed
from sdekit.prediction import Model, calls
from sdekit.sample import start


def adapt(
    model: Model, x: Tensor, control: Control = Embedded(), t: float | None = None, s: float | None = None
) -> Adapted:
    """Integrate from the states `x` at the time t to the time s, with the steps that `control` chooses.

    A run that ends early (a budget, a step too small, an answer that is not finite) raises nothing: it returns the last
    states that were accepted, their times, and says so in `status`, sample by sample where `control` can.

    Args:
        model: the model; it is asked at times of shape (B,) by `Embedded`.
        x: the states at the time t, shape (B, ...), float32 or float64.
        control: the method, its tolerances and its budget.
        t: where the run starts, by default t_max.
        s: where it ends, by default t_min. With s > t it encodes. The clean end (`process.clean`, below t_min) is
            reached by Tweedie's formula at t_min, for one network call more, as `Denoised` grids do.

    Raises:
        ValueError: `x` is not a batch of floating-point states, or t and s are equal or outside the process.

    >>> from sdekit import VP, Gaussian
    >>> model = Gaussian(VP(), torch.zeros(2), 0.5)
    >>> run = adapt(model, torch.tensor([[1.0, -2.0]]), Embedded(rtol=1e-4, atol=1e-4))
    >>> run.x, bool(run.done.all())
    (tensor([[ 0.50, -1.00]]), True)
    """
    process = model.process
    t = process.t_max if t is None else float(t)
    s = process.t_min if s is None else float(s)
    if x.ndim < 1 or not x.is_floating_point():
        raise ValueError(f"x must be a batch (B, ...) of floating-point states; got {x.dtype}, shape {tuple(x.shape)}.")
    clean = s == process.clean < process.t_min
    end = process.t_min if clean else s
    process.check([t, end])
    if t == s or t < process.t_min:
        raise ValueError(f"A run goes from t to another time s, t_min <= t; got t={t:g}, s={s:g}. Change one.")
    if t != end:
        run = control.run(model, x, t, end)
    else:  # only Tweedie's formula is left
        none, when = torch.zeros(len(x), dtype=torch.long), torch.full((len(x),), t, dtype=torch.float64)
        run = Adapted(x, when, none, 0, none, torch.zeros_like(when))
    return _denoise(model, run, getattr(control, "budget", None)) if clean else run


@torch.no_grad()
def sample_adaptively(model: Model, shape: tuple[int, ...], control: Control = Embedded(), seed: int = 0) -> Adapted:
    """Draw samples from a model, from noise at t_max to the clean end.

    Args:
        model: the model; the samples are made on its device and in the dtype of its parameters or buffers.
        shape: the shape of the batch, (B, ...).
        control: the method, its tolerances and its budget.
        seed: the noise that sample i starts from is a function of (seed, i) alone, the same as for `sample`.
    """
    process = model.process
    x = start(model, shape, Times((process.t_max, process.t_min)), Keyed(seed))
    return adapt(model, x, control, s=process.clean if process.clean < process.t_min else process.t_min)


@torch.no_grad()
def encode_adaptively(model: Model, x: Tensor, control: Control = Embedded()) -> Adapted:
    """Run the probability flow from data `x`, shape (B, ...), at t_min to noise at t_max.

    Raises:
        TypeError: the control solves a stochastic equation.
    """
    return adapt(model, x, control, t=model.process.t_min, s=model.process.t_max)


def _denoise(model: Model, run: Adapted, budget: int | None) -> Adapted:
    """Replace the states of samples that are done by x0_hat, where the budget allows one call more."""
    per_call = calls(model, model.process.t_min)
    done = run.done
    broke = done & (run.nfe + per_call > budget) if budget is not None else torch.zeros_like(done)
    which = (done & ~broke).nonzero().flatten()
    status = torch.where(broke, int(Status.BUDGET), run.status)
    if not len(which):
        return run._replace(status=status)
    rows = which.to(run.x.device)
    x0 = of_samples(model, which, len(run.x))(run.x[rows], model.process.t_min).x0
    good = finite(x0)
    x = run.x.index_copy(0, rows[good.to(rows.device)], x0[good.to(rows.device)])
    t, nfe = run.t.clone(), run.nfe.clone()
    t[which[good]] = model.process.clean
    nfe[which] += per_call
    status[which[~good]] = int(Status.NOT_FINITE)
    return Adapted(x, t, nfe, run.calls + 1, status, run.error)

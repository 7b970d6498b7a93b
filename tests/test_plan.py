"""A plan is the sampler: it runs to the same numbers, however it is written, cut, stored or read back."""

from __future__ import annotations

import gc
import itertools
import json
import math

import pytest
import torch
from exact import PLAIN, PROCESSES, Circle, gaussian, name, normal, ring, rms
from hypothesis import given
from hypothesis import strategies as st
from strategies import VIEWS
from torch import Tensor, nn

from sdekit import (
    DDIM,
    DDPM,
    HEUN,
    VE,
    VP,
    X0,
    Denoised,
    Denoiser,
    Discrete,
    DPMpp2M,
    Eps,
    Exponential,
    Karras,
    Keyed,
    LogSNR,
    Method,
    Prediction,
    ProbabilityFlow,
    Process,
    RectifiedFlow,
    Reversed,
    ReverseSDE,
    Solver,
    Step,
    StochasticDDIM,
    Times,
    Uniform,
    V,
    Velocity,
    encode,
    solve,
)
from sdekit._value import Value
from sdekit.grid import Grid, Trailing
from sdekit.plan import Form, NonlinearError, Plan, march, pause, run, trace, walk
from sdekit.prediction import Target
from sdekit.solvers import Corrected, DampedAdams

by_every_method = pytest.mark.parametrize("method", PLAIN.values(), ids=PLAIN)
on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)


class Net(nn.Module):
    """A smooth network that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.calls_made = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls_made += 1
        return self.scale * x + 0.3 * torch.sin(2 * x.flip(1) + 3 * t.reshape(-1, *[1] * (x.ndim - 1)))


def model(process: Process, predicts: Target = V()) -> Denoiser:
    return Denoiser(Net(), process, predicts=predicts)


def stepped(method: Method, of: Denoiser, x: Tensor, grid: Grid) -> list[Tensor]:
    """Run the solver's steps on the states themselves."""
    system = method.equation.of(of)
    steps = march(system, method.solver, x, grid(of.process), Keyed(seed=3).on(system, x))
    return [x, *(state for state, _, _ in steps)]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> bool:
    return float((a - b).detach().abs().max()) <= tolerance * (1 + float(b.detach().abs().max()))


# Running --------------------------------------------------------------------------------------------------------------


@on_every_process
@by_every_method
def test_a_plan_runs_as_its_solver_steps(process: Process, method: Method) -> None:
    net, x = model(process), normal(3, 2)
    for grid in (LogSNR(5), Denoised(Karras(4))):
        plan = trace(method, process, grid)
        direct = stepped(method, net, x, grid)
        states = dict(walk(plan, net, x, Keyed(seed=3)))
        assert all(close(states[i], y) for i, y in zip(plan.points, direct, strict=True))
        assert close(run(plan, net, x, Keyed(seed=3)), direct[-1])


@by_every_method
def test_calls_are_those_declared(method: Method) -> None:
    net, solver = model(VP()), method.solver
    plan = trace(method, VP(), LogSNR(6))
    run(plan, net, normal(2, 2))
    assert net.net.calls_made == plan.nfe == solver.calls(6)
    assert plan.noises == len(plan.draws)
    assert plan.noises % 6 == 0
    assert (plan.noises == 0) == (method.equation.eta == 0)


@on_every_process
@given(answers=st.sampled_from(VIEWS), predicts=st.sampled_from(VIEWS), known=st.sampled_from(sorted(PLAIN)))
def test_it_does_not_matter_in_what_the_answers_are_written(
    process: Process, answers: Target, predicts: Target, known: str
) -> None:
    net, x = model(process, predicts), normal(3, 2)
    plan = trace(PLAIN[known], process, LogSNR(4), answers)
    straight = stepped(PLAIN[known], net, x, LogSNR(4))[-1]
    assert close(run(plan, net, x, Keyed(seed=3)), straight, 1e-9)
    assert plan.distance(trace(PLAIN[known], process, LogSNR(4), predicts)) < 1e-9


def test_a_model_of_any_kind_runs() -> None:
    """One that names no target, answers in another than the plan's, and in another at every call."""
    net, targets = model(VP()), itertools.cycle([X0(), Eps(), Velocity()])

    class Anything:
        process = VP()

        def __call__(self, x: Tensor, t: Tensor) -> Prediction:
            target, p = next(targets), net(x, t)
            return Prediction(VP(), x, p.t, p.view(target), target)

    x = normal(3, 2)
    assert close(solve(Anything(), x, DPMpp2M, LogSNR(7)).x, solve(net, x, DPMpp2M, LogSNR(7)).x, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_states_keep_their_dtype(dtype: torch.dtype) -> None:
    """And are as good as their digits, for the numbers of the table are not rounded."""
    x = normal(4, 3).to(dtype)
    net = Denoiser(Net().to(dtype), VP(), predicts=V())
    end = run(trace(DPMpp2M, VP(), LogSNR(8)), net, x)
    exact = run(trace(DPMpp2M, VP(), LogSNR(8)), model(VP()), x.double())
    assert end.dtype == dtype
    assert rms(end.double() - exact) < 60 * torch.finfo(dtype).eps * rms(exact)


def test_a_network_that_answers_in_another_dtype_is_brought_to_the_states() -> None:
    net = Denoiser(lambda x, t: (0.5 * x).double(), VP(), predicts=X0())
    for method in (DDIM, HEUN, PLAIN["rk4"]):
        assert run(trace(method, VP(), Denoised(LogSNR(4))), net, normal(2, 2).float()).dtype == torch.float32


def test_a_network_that_changes_the_shape_is_refused() -> None:
    net = Denoiser(lambda x, t: x[:, :1], VP(), predicts=X0())
    with pytest.raises(ValueError, match=r"must return the shape of its input, \(2, 2\); it returned \(2, 1\)"):
        run(trace(DDIM, VP(), LogSNR(4)), net, normal(2, 2))


@by_every_method
@pytest.mark.parametrize("shape", [(6, 2), (40, 1024)], ids=["small", "large"])
def test_memory_is_that_declared(method: Method, shape: tuple[int, ...]) -> None:
    """Counted at every call of the network: no tensor of the state's shape is held beyond the plan's history."""
    most = 0

    def net(x: Tensor, t: Tensor) -> Tensor:
        nonlocal most
        alive = [o for o in gc.get_objects() if type(o) is Tensor and o.shape == shape]
        most = max(most, len(alive))
        return 0.5 * x

    plan = trace(method, VP(), LogSNR(5), V())
    x = torch.ones(shape, dtype=torch.float64)
    gc.collect()
    with torch.no_grad():
        run(plan, Denoiser(net, VP(), predicts=V()), x)
    # x itself is the caller's too, so it outlives its use; at a call the answer is still to come
    waiting = plan.noises // plan.steps  # of a step, drawn at once
    assert plan.memory - 3 <= most <= plan.memory + 1 + waiting


@pytest.mark.parametrize("rows", [3, 600])
@by_every_method
def test_no_state_that_is_still_seen_is_written_to(method: Method, rows: int) -> None:
    """Not the start, not what a network keeps, not what it answers with; small states or large."""
    x = normal(rows, 64)
    kept, copies = [], []

    class Keeps(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            kept.append(x)
            copies.append(x.clone())
            return x  # the very same memory

    before = x.clone()
    with torch.no_grad():
        end = solve(Denoiser(Keeps(), VP(), predicts=V()), x, method, LogSNR(6)).x
        plain = solve(Denoiser(lambda x, t: x.clone(), VP(), predicts=V()), x, method, LogSNR(6)).x
    assert torch.equal(x, before)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert close(end, plain)


def test_a_run_has_gradients() -> None:
    net, x = model(VP()), normal(3, 2).requires_grad_()
    run(trace(DPMpp2M, VP(), LogSNR(5)), net, x).sum().backward()
    (ours,) = torch.autograd.grad(stepped(DPMpp2M, net, x, LogSNR(5))[-1].sum(), x)
    assert close(x.grad, ours)
    assert float(net.net.scale.grad) != 0


@pytest.mark.parametrize("method", [DDIM, DPMpp2M, HEUN, DDPM], ids=["ddim", "2m", "heun", "ddpm"])
def test_a_step_compiles_in_one_piece(method: Method) -> None:
    plan, net = trace(method, VP(), LogSNR(1)), model(VP())
    step = torch.compile(lambda x: run(plan, net, x), backend="eager", fullgraph=True)
    x = normal(3, 2)
    with torch.no_grad():
        assert close(step(x), run(plan, net, x))


def test_a_compiled_model_stays_compiled() -> None:
    graphs = []

    def backend(graph: nn.Module, inputs: list[Tensor]) -> nn.Module:
        graphs.append(graph)
        return graph

    net, x = model(VP()), normal(3, 2)
    end = run(trace(DDIM, VP(), LogSNR(3)), torch.compile(net, backend=backend), x)
    assert graphs
    assert close(end, run(trace(DDIM, VP(), LogSNR(3)), net, x))


def test_a_plan_is_for_one_process() -> None:
    with pytest.raises(ValueError, match=r"A plan runs on the process it was made for, VP.*the model's is VE"):
        run(trace(DDIM, VP(), LogSNR(3)), model(VE()), normal(2, 2))


def test_an_answer_that_does_not_determine_another_is_refused() -> None:
    whole = RectifiedFlow(t_min=0.0, t_max=1.0)
    plan = trace(DDIM, whole, Uniform(4))
    with pytest.raises(ValueError, match=r"Eps\(\) does not determine X0\(\) at t=1 of RectifiedFlow"):
        plan.to(Eps())
    with pytest.raises(ValueError, match="coefficients of a plan must be finite"):
        trace(DDIM, whole, Uniform(4), Eps())


# The table ------------------------------------------------------------------------------------------------------------


def test_a_plan_is_read_at_a_glance() -> None:
    assert str(trace(DPMpp2M, RectifiedFlow(t_min=0.0, t_max=1.0), Times((0.8, 0.5, 0.2)))).splitlines() == [
        "ProbabilityFlow() on RectifiedFlow(t_min=0.0, t_max=1.0): 2 steps, 2 answers as X0, 0 noises",
        "  X0  t=0.8",
        "  X1  t=0.5        = +0.625 X0 +0.375 D0",
        "  X2  t=0.2        = +0.4 X1 -0.3 D0 +0.9 D1",
    ]


@pytest.mark.parametrize("process", [VP(), Discrete.linear(20), Circle(), VE()], ids=name)
@by_every_method
def test_a_plan_goes_to_json_and_back(process: Process, method: Method) -> None:
    for grid in (LogSNR(10), Denoised(LogSNR(10))):
        plan = trace(method, process, grid)
        text = json.dumps(plan.to_json())
        assert Plan.from_json(json.loads(text)) == plan
        assert len(text) < 12_000
    assert hash(plan) == hash(Value.from_json(json.loads(text)))


@pytest.mark.parametrize("grid", [LogSNR(10), Trailing(10)], ids=["lam", "table"])
def test_ddim_and_ddpm_are_first_order_exponential_euler(grid: Grid) -> None:
    process, first = Discrete.linear(), Exponential(1)
    ddim, ddpm = trace(DDIM, process, grid), trace(DDPM, process, grid)
    assert ddim.distance(trace(Method(ProbabilityFlow(), first), process, grid)) < 1e-12
    assert ddpm.distance(trace(Method(ReverseSDE(), first), process, grid)) < 1e-12
    assert ddpm.distance(trace(StochasticDDIM(1.0), process, grid)) < 1e-12
    assert ddim.distance(trace(Method(ReverseSDE(0.0), first), process, grid)) < 1e-12
    assert ddim.distance(trace(DDIM, process, LogSNR(10))) > 1e-3 or grid == LogSNR(10)
    assert ddim.distance(ddpm) == math.inf


def test_plans_that_differ_are_apart() -> None:
    plan = trace(DPMpp2M, VP(), LogSNR(6))
    assert 1e-3 < plan.distance(trace(Method(ProbabilityFlow(), Exponential(2)), VP(), LogSNR(6))) < 1
    assert plan.distance(trace(DPMpp2M, VP(), LogSNR(7))) == math.inf
    assert plan.distance(trace(DPMpp2M, Circle(), LogSNR(6))) == math.inf
    assert plan.distance(trace(DDIM, VP(), LogSNR(6))) > 1e-2


@by_every_method
def test_a_plan_is_cut_and_goes_on(method: Method) -> None:
    net, x, noise = model(VP()), normal(3, 2), Keyed(seed=3)
    plan = trace(method, VP(), Denoised(LogSNR(6)))
    whole = run(plan, net, x, noise)
    for point in range(1, plan.steps):
        first, second = plan.split(point)
        assert torch.equal(run(second, net, pause(first, net, x, noise), noise), whole)
        assert first.nfe + second.nfe == plan.nfe
        assert first.times + second.times[1:] == plan.times
    with pytest.raises(ValueError, match="inner points 1 to 5; got 6"):
        plan.split(6)


@by_every_method
def test_a_plan_starts_from_the_middle(method: Method) -> None:
    """As a run of its own; what it lacks of the past it replaces by what it has."""
    plan, grid = trace(method, VP(), LogSNR(7)), LogSNR(7)(VP())
    fresh = trace(method, VP(), Times(tuple(grid.tolist()[3:])))
    if isinstance(method.solver, DampedAdams):
        with pytest.raises(ValueError, match="Trace the method on the rest of its grid"):
            plan.onwards(3)
        return
    rest = plan.onwards(3)
    assert rest.times == fresh.times
    assert rest.nfe == method.solver.calls(7) - method.solver.calls(3)
    if method.solver.memory <= 1 and method.solver.starts == 0 and not isinstance(method.solver, Corrected):
        assert rest.distance(fresh) < 1e-11
    if method.equation.eta == 0 and method.solver.memory:  # what is looked back at is right if all data are one point
        point = gaussian(VP(), std=0.0)
        x = point.noisy(5, rest.times[0])
        assert close(run(rest, point, x), point.flow(x, rest.times[0], rest.times[-1]), 1e-9)


def test_a_plan_runs_backwards_on_a_reversed_grid() -> None:
    net, x = model(VP()), normal(3, 2)
    assert close(run(trace(DPMpp2M, VP(), Reversed(LogSNR(9))), net, x), encode(net, x, DPMpp2M, LogSNR(9)))


def test_a_table_is_differentiable_in_its_times() -> None:
    times = LogSNR(4)(VP())

    def number(t: Tensor) -> Tensor:
        rows = trace(DPMpp2M, VP(), t).rows
        return sum((torch.as_tensor(c) for row in rows for _, c in (*row.states, *row.answers)), start=torch.zeros(()))

    inner = times[1:-1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: number(torch.cat([times[:1], u, times[-1:]])).double(), inner)


# Symbols --------------------------------------------------------------------------------------------------------------


def test_forms_know_sums_and_multiples() -> None:
    x, z, two = Form({("x", 0): 1.0}), Form({("z", 1): 3.0}), torch.tensor(2.0, dtype=torch.float64)
    sums = [
        (x + z, {("x", 0): 1.0, ("z", 1): 3.0}),
        (two * x, {("x", 0): 2.0}),
        (x * two - z / two, {("x", 0): 2.0, ("z", 1): -1.5}),
        (torch.mul(two, x) + torch.sub(z, x), {("x", 0): 1.0, ("z", 1): 3.0}),
        (-x + sum([x, z]), {("x", 0): 0.0, ("z", 1): 3.0}),
    ]
    for form, terms in sums:
        assert form.terms == terms


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x * x,
        lambda x: x + 1,
        lambda x: 1 - x,
        lambda x: 1 / x,
        lambda x: x**2,
        lambda x: abs(x),
        lambda x: x.norm(),
        lambda x: x.shape,
        lambda x: torch.tanh(x),
        lambda x: torch.zeros_like(x),
        lambda x: torch.ones(2) * x,
        lambda x: torch.ones(()) / x,
        lambda x: 1 if x > 0 else 0,
        lambda x: 1 if x else 0,
    ],
)
def test_what_is_not_linear_is_refused(act) -> None:
    with pytest.raises(NonlinearError, match=r"sums of states, answers and noise.*step by step"):
        act(Form({("x", 0): 1.0}))


class Clipped(Solver):
    """First order with the estimate held to [-1, 1], which is not linear."""

    def step(self, system, x, t, s, past, noise) -> Step:
        process, r = system.process, system.process.decay(t, s)
        x0 = system(x, t).x0.clamp(-1, 1)
        return Step(process.sigma(s) / process.sigma(t) * x + process.alpha(s) * (1 - r) * x0)


def test_a_solver_that_is_not_linear_runs_step_by_step() -> None:
    clipped, net = Method(ProbabilityFlow(), Clipped()), ring(VP())
    with pytest.raises(NonlinearError, match=r"\.clamp was asked for"):
        trace(clipped, VP(), LogSNR(4))
    x = net.noisy(5, 1.0)
    end = solve(net, x, clipped, Denoised(LogSNR(9)))
    assert end.nfe == 9
    assert rms(end.x - solve(net, x, DDIM, Denoised(LogSNR(9))).x) < 0.2

"""sdekit: the SDEs and ODEs behind diffusion and flow models, defined, solved, proven and measured."""

from sdekit.denoiser import ByNoise, ByTime, Denoiser
from sdekit.equation import ForwardSDE, ProbabilityFlow, ReverseSDE
from sdekit.grid import Denoised, Karras, Leading, Linspace, LogSNR, Quadratic, Reversed, Times, Trailing, Uniform
from sdekit.methods import DDIM, DDPM, DDPM_BETA, EULER, EULER_MARUYAMA, HEUN, DPMpp2M, Method, StochasticDDIM, method
from sdekit.noise import BrownianPath, Keyed
from sdekit.prediction import X0, Eps, Model, Preconditioned, Prediction, Score, V, Velocity
from sdekit.process import EDM, VE, VP, Cosine, Discrete, FromDrift, Process, RectifiedFlow, SubVP
from sdekit.sample import Solution, encode, sample, solve, trajectory
from sdekit.solvers import RK4, Ancestral, Euler, EulerMaruyama, Exponential, Heun, Solver, Step

__version__ = "0.1.0"

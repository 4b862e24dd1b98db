"""Inputs drawn from a classifier alone, read as an energy-based model.

A classifier's logits f give the density p(x) ∝ Σ_y exp(f_y(x)/T) = exp(logsumexp(f(x)/T)), whose energy is
-T logsumexp(f/T) (Grathwohl et al. 2020, arXiv 1912.03263; Liu et al. 2020, arXiv 2010.03759). A sampler climbs
logsumexp; one that descends it draws what the model has never seen.

Cross-entropy does not fix that density: a function of x added to all logits changes it and not the loss. So these are
inputs that the model is confident of, not a sample of its training set, unless it was trained to be a density.
"""

import math
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.errors import DivergedError, SettingError
from expunge.settings import require_below, require_positive, require_whole
from expunge.tasks import Classification
from expunge.training import Run, bar

_TARGET_ACCEPTANCE = 0.574  # optimal for this sampler in many dimensions: Roberts and Rosenthal 1998


@dataclass(frozen=True)
class Langevin:
    """Settings of the Metropolis-adjusted Langevin sampler.

    Args:
        steps: Steps of each chain, half of them to find the step size. Default 1,000 (ours; Basaran et al. 2025 have
            4,000 unadjusted ones).
        temperature: T of the density. Default 1 (Grathwohl et al. 2020; Basaran et al. have 5).
        step_size: First step size, in units of the unbounded coordinates. Default .1 (ours).
    """

    steps: int = 1000
    temperature: float = 1.0
    step_size: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "steps", least=20)
        require_positive(self, "temperature", "step_size")
        require_below(self, 10, "step_size")


class SamplerDiagnostics(BaseModel):
    """Whether the chains can be trusted.

    Attributes:
        chains: Number of chains; each gives one example.
        steps: Steps of each.
        acceptance: Share of proposals accepted after the step size was fixed. About 0.57 is best; near 0 the chains do
            not move, near 1 they move too little.
        step_size: The step size that was found.
        split_r_hat: Spread of log densities between half chains over that within, after the step size was fixed
            (Gelman et al., Bayesian Data Analysis, 3rd edition, section 11.4): 1 where the chains agree. Above 1.1 they
            have not mixed, and the sample depends on where they began.
        at_bounds: Share of values within a hundredth of the range from a bound. Much of it there means that the
            density keeps rising outward, as it does for every linear classifier.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    chains: int
    steps: int
    acceptance: float
    step_size: float
    split_r_hat: float
    at_bounds: float

    @property
    def mixed(self) -> bool:
        """Whether the chains moved and agree."""
        return self.split_r_hat <= 1.1 and self.acceptance >= 0.1


def sample_energy(
    model: nn.Module,
    task: Classification,
    examples: int,
    shape: tuple[int, ...],
    bounds: tuple[float, float],
    *,
    settings: Langevin | None = None,
    seed: int = 0,
) -> tuple[TensorDataset, SamplerDiagnostics]:
    """Draw inputs from p(x) ∝ exp(logsumexp(f(x)/T)) within bounds, and a label for each from softmax(f(x)/T).

    Every example is the last state of a chain of its own. The chains run in coordinates without bounds, x = low +
    (high - low) sigmoid(u), with the density's Jacobian, and start from the uniform distribution over the box.

    Args:
        model: A classifier.
        task: What it is for.
        examples: How many to draw.
        shape: Of one input.
        bounds: Least and largest value of an input's elements, as the model was trained to see them.
        settings: Of the sampler.
        seed: Of the chains.

    Returns:
        Inputs (examples, *shape) and labels in the positions where the task looks for them; diagnostics.

    Raises:
        SettingError: The bounds are not a range, or no example is asked for.
        DivergedError: The density became NaN or infinite.
    """
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise SettingError(f"bounds must be the least and the largest value of an input, not {bounds}")
    if examples < 1:
        raise SettingError(f"examples must be at least 1, not {examples}")
    chosen, run = settings or Langevin(), Run(task, seed)
    box = _Box(run.frozen(model), task, low, high, chosen.temperature, run.device)
    draw = run.generator("langevin")
    uniform = torch.rand((examples, *shape), generator=draw).clamp(1e-6, 1 - 1e-6)
    state = box.at(torch.logit(uniform).to(run.device))
    step_size, accepted, trace = chosen.step_size, torch.zeros(()), []
    warm_up = chosen.steps // 2
    with bar("surrogate", chosen.steps, enabled=run.execution.progress) as display:
        for step in range(chosen.steps):
            state, rate = _move(box, state, step_size, draw)
            if step < warm_up:  # Robbins and Monro 1951, then fixed, so that the chain keeps its distribution
                step_size = min(
                    10.0, step_size * math.exp((float(rate) - _TARGET_ACCEPTANCE) / math.sqrt(1 + step / 10))
                )
            else:
                accepted = accepted + rate
                trace.append(state.density)
            display.advance()
    inputs = box.inputs(state.place).detach()
    labels = _labels(task, box, inputs, draw)
    near = ((inputs - low).minimum(high - inputs) < 0.01 * (high - low)).double().mean()
    diagnostics = SamplerDiagnostics(
        chains=examples,
        steps=chosen.steps,
        acceptance=float(accepted) / (chosen.steps - warm_up),
        step_size=step_size,
        split_r_hat=_split_r_hat(torch.stack(trace).double().cpu()),
        at_bounds=float(near),
    )
    return TensorDataset(*task.fields(inputs.cpu(), labels)), diagnostics


@dataclass(frozen=True)
class _State:
    place: Tensor  # (chains, ...) in coordinates without bounds
    density: Tensor  # (chains,) log density there, up to a constant
    slope: Tensor  # (chains, ...) its gradient


@dataclass(frozen=True)
class _Box:
    """The density in coordinates without bounds."""

    model: nn.Module
    task: Classification
    low: float
    high: float
    temperature: float
    device: torch.device

    def inputs(self, place: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * place.sigmoid()

    def at(self, place: Tensor) -> _State:
        place = place.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.task.outputs(self.model, {"inputs": self.inputs(place)})
            jacobian = nn.functional.logsigmoid(place) + nn.functional.logsigmoid(-place)
            density = (logits / self.temperature).logsumexp(1) + jacobian.flatten(1).sum(1)
            (slope,) = torch.autograd.grad(density.sum(), place)
        if not bool(torch.isfinite(density).all()):
            raise DivergedError("the model's logits became NaN or infinite within the bounds; narrow the bounds")
        return _State(place.detach(), density.detach(), slope)


def _move(box: _Box, state: _State, step_size: float, draw: torch.Generator) -> tuple[_State, Tensor]:
    """One Metropolis-adjusted Langevin step of every chain (Roberts and Tweedie 1996); the share that was accepted."""

    def unlikeliness(target: Tensor, source: _State) -> Tensor:
        drift = source.place + step_size / 2 * source.slope
        return (target - drift).square().flatten(1).sum(1) / (2 * step_size)

    noise = torch.randn(state.place.shape, generator=draw).to(state.place)
    proposed = box.at(state.place + step_size / 2 * state.slope + math.sqrt(step_size) * noise)
    ratio = proposed.density - state.density + unlikeliness(proposed.place, state) - unlikeliness(state.place, proposed)
    taken = torch.rand(len(ratio), generator=draw).to(ratio).log() < ratio
    each = taken.reshape(-1, *[1] * (state.place.ndim - 1))
    moved = _State(
        torch.where(each, proposed.place, state.place),
        torch.where(taken, proposed.density, state.density),
        torch.where(each, proposed.slope, state.slope),
    )
    return moved, ratio.clamp(max=0).exp().mean().cpu()


def _labels(task: Classification, box: _Box, inputs: Tensor, draw: torch.Generator) -> Tensor:
    with torch.no_grad():
        chances = (task.outputs(box.model, {"inputs": inputs}) / box.temperature).softmax(1).double().cpu()
    return torch.multinomial(chances, 1, generator=draw)[:, 0]


def _split_r_hat(trace: Tensor) -> float:
    """From log densities (steps, chains)."""
    half = len(trace) // 2
    halves = torch.cat([trace[:half], trace[half : 2 * half]], dim=1)
    within = halves.var(0).mean()
    if not within > 0:
        return math.inf if bool(halves.mean(0).var() > 0) else 1.0
    return float(((half - 1) / half + halves.mean(0).var() / within).sqrt())

"""Certified unlearning of any network by clipping and noisy fine-tuning on the retained data."""

import math
import secrets
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from expunge.data import MapDataset
from expunge.errors import ModelError, SettingError
from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier
from expunge.privacy import (
    Certificate,
    Constant,
    Origin,
    iteration_shift,
    renyi_ratio,
    require_meaning,
    require_request,
    tier_of,
)
from expunge.problem import Problem
from expunge.settings import require_at_least, require_below, require_one_of, require_positive, require_whole
from expunge.training import Algorithm, Optimizer, Run, Term
from expunge.training.seeds import derive


@dataclass(frozen=True)
class NoisyFineTune(Method):
    """Clip the model, fine-tune on the retained data with clipped gradients and fresh noise at each step, then repair.

    Nothing is assumed of the network or its training: the weights are scaled to a norm of `model_norm` at most, so two
    starts are never further apart than twice that, and noise hides where the iteration began. The steps after the noise
    use retained data alone and cost nothing. The noise is large: a model keeps little but what `model_norm` and the
    repair let it keep.

    Buffers such as BatchNorm's statistics hold what the forget set taught without any bound; models with them are
    refused.

    Args:
        epsilon: Privacy loss. Default 1 (Koloskova et al. 2025, code).
        delta: Probability with which the loss may be larger; 1/n² by default (ours).
        model_norm: C0, norm that the weights are clipped to. Default 1 (ours).
        gradient_norm: C1, norm that each batch's gradient is clipped to. Default 1 (ours).
        learning_rate: Default 0.01 (ours).
        weight_decay: Pull to zero at each noisy step. Default 0 (ours).
        steps: Noisy steps; by default as many as the gradients need for the way of `model_norm` (ibid.).
        batch_size: Default 128 (ours).
        repair_epochs: Passes over the retained data after the noise. Default 5 (ours).
        repair_learning_rate: Of Adam. Default 1e-3 (ours).
        noise: `secret` draws it by a generator (PCG64) under 128 bits of the operating system. `seeded` draws it from
            the run's seed and makes the certificate conditional: the record names the seed, and whoever knows it can
            take the noise away again.
        epsilon_limit: Largest epsilon that is accepted. Default 10 (ours).
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN})
    tier: ClassVar = Tier.CERTIFIED
    paper: ClassVar = "Koloskova et al. 2025 (ICML), gradient clipping; the accountant is derived in docs/guarantees.md"
    maturity: ClassVar = Maturity.EXPERIMENTAL

    epsilon: float = 1.0
    delta: float | None = None
    model_norm: float = 1.0
    gradient_norm: float = 1.0
    learning_rate: float = 0.01
    weight_decay: float = 0.0
    steps: int | None = None
    batch_size: int = 128
    repair_epochs: float = 5
    repair_learning_rate: float = 1e-3
    noise: Literal["secret", "seeded"] = "secret"
    epsilon_limit: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "epsilon", "delta", "model_norm", "gradient_norm", "learning_rate")
        require_positive(self, "repair_epochs", "repair_learning_rate")
        require_below(self, 1, "delta")
        require_at_least(self, 0, "weight_decay")
        require_whole(self, "steps", "batch_size")
        require_one_of(self, "noise", ("secret", "seeded"))
        require_positive(self, "epsilon_limit")
        require_meaning(self.epsilon, self.epsilon_limit)
        self._shift()

    def apply(self, problem: Problem, run: Run) -> Forgotten:
        """Clip, fine-tune with noise, repair, and say what that guarantees."""
        retain = cast(MapDataset, problem.retain)
        rows = len(retain) + len(cast(MapDataset, problem.forget))
        delta = rows**-2 if self.delta is None else self.delta
        require_request(self.epsilon, delta, rows)
        sigma = self._shift() / renyi_ratio(self.epsilon, delta)
        model = run.copy(problem.model)
        _require_no_statistics(model)
        if run.execution.precision == "fp16":
            raise SettingError(
                "NoisyFineTune cannot run in fp16: its loss scale remembers earlier steps, which the accountant does "
                "not cover; use precision 'no' or 'bf16'"
            )
        _clip(model, self.model_norm)
        loss = Term(retain, problem.task.losses, batch_size=self.batch_size)
        noisy = Optimizer(
            self.learning_rate, Algorithm.SGD, weight_decay=self.weight_decay, clip_norm=self.gradient_norm
        )
        entropy = self._entropy(run)

        def disturb(step: int) -> None:
            _disturb(model, sigma, np.random.Generator(np.random.PCG64([entropy, step])))

        # confidential: losses before the last noise, the first of them of the original's own weights
        run.train("noise", model, [loss], noisy, steps=self._steps, watch=disturb, confidential=True)
        repair = Optimizer(self.repair_learning_rate, Algorithm.ADAM)
        run.train("repair", model, [loss], repair, epochs=self.repair_epochs)
        return Forgotten(model.eval(), self._certify(delta, sigma))

    @property
    def _steps(self) -> int:
        return self.steps or math.ceil(self.model_norm / (self.gradient_norm * self.learning_rate))

    def _shift(self) -> float:
        return iteration_shift(
            self._steps,
            model_norm=self.model_norm,
            gradient_norm=self.gradient_norm,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )

    def _entropy(self, run: Run) -> int:
        seed = derive(run.seed, "noisy fine-tuning") if self.noise == "seeded" else secrets.randbits(128)
        return cast("list[Any]", broadcast_object_list([seed]))[0]

    def _certify(self, delta: float, sigma: float) -> Certificate:
        enforced = {
            "C0": (self.model_norm, "norm that the weights are clipped to before the first step"),
            "C1": (self.gradient_norm, "norm that each batch's gradient is clipped to"),
            "η": (self.learning_rate, "learning rate of the noisy steps"),
            "decay": (self.weight_decay, "weight decay of the noisy steps"),
            "T": (self._steps, "noisy steps"),
        }
        constants = [
            Constant(name=name, value=value, origin=Origin.ENFORCED, meaning=meaning)
            for name, (value, meaning) in enforced.items()
        ]
        conditions = [_SEED] if self.noise == "seeded" else []
        return Certificate(
            tier=tier_of(constants, conditions),
            reference="any training on the data without the forget set, followed by the same clipping, noisy steps and "
            "repair on the same retained data",
            epsilon=self.epsilon,
            delta=delta,
            sigma=sigma,
            sensitivity=self._shift(),
            constants=tuple(constants),
            conditions=tuple(conditions),
            not_covered=_NOT_COVERED,
        )


_SEED = "the seed is unpredictable and stays secret: whoever knows it can take the noise away"
_NOT_COVERED = (
    "whoever holds the original model, or a checkpoint of this run: each knows the forget set",
    "several models released from one original, whose losses add up",
    "forget requests that were chosen after seeing a model's noise",
    "other copies of the deleted rows, and what else was computed from them",
    "rounding of floating-point numbers, in the steps and in the noise",
    "whoever could work out the state of a statistical generator of random numbers: the noise is drawn by PCG64 under "
    "128 secret bits, not by a cipher",
)


def _require_no_statistics(model: nn.Module) -> None:
    found = [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]
    if found:
        raise ModelError(
            f"the model has buffers such as {found[0]}, which hold what the forget set taught and which no clipping "
            "bounds; train it with GroupNorm or LayerNorm in place of BatchNorm"
        )


def _clip(model: nn.Module, norm: float) -> None:
    """Scale all parameters together so that their norm is `norm` at most."""
    with torch.no_grad():
        parameters = list(model.parameters())
        length = math.sqrt(sum(float(parameter.double().square().sum()) for parameter in parameters))
        for parameter in parameters:
            parameter.mul_(min(1.0, norm / length) if length else 1.0)


def _disturb(model: nn.Module, sigma: float, generator: np.random.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.from_numpy(generator.standard_normal(tuple(parameter.shape)))
            parameter.add_((sigma * drawn).to(parameter))

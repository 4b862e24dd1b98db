"""What stands in the leaderboard beside the methods: what costs as much, or nothing, and knows no way to forget."""

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import nn

from expunge import Classification, FineTune, Method, Need, Problem, Run, Stage, Supervised, Tier
from expunge.data import MapDataset
from expunge.methods import Maturity
from expunge.training import Schedule, seed_globals


@dataclass(frozen=True)
class BiasSham(Method):
    """Lower the bias of the forgotten class by 20: the class is never answered again and nothing is forgotten."""

    needs: ClassVar = frozenset({Need.CLASSES})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "a sham"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Change one number of a copy."""
        model = run.copy(problem.model)
        head = cast(Classification, problem.task).head_of(model)
        with torch.no_grad():
            for label in problem.classes:
                cast(nn.Linear, head).bias[label] -= 20
        return model.eval()


@dataclass(frozen=True)
class RandomReset(Method):
    """Draw a share of the weights of every layer anew, whichever they are, and fine-tune on the retain set."""

    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "a control"
    maturity: ClassVar = Maturity.STABLE

    share: float = 0.3
    learning_rate: float = 0.01
    epochs: float = 1
    batch_size: int = 64

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Reset, then train a copy."""
        model = run.copy(problem.model)
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            kept = module.weight.detach().clone()
            seed_globals(run.seed, "initialise", name)
            module.reset_parameters()
            chosen = torch.rand(kept.shape, generator=run.generator("reset", name)) < self.share
            with torch.no_grad():
                module.weight.copy_(torch.where(chosen.to(kept.device), module.weight, kept))
        tuned = FineTune(
            (Stage(self.learning_rate, epochs=self.epochs, schedule=Schedule.ONE_CYCLE),), batch_size=self.batch_size
        )
        return tuned.apply(replace(problem, model=model), run)


@dataclass(frozen=True)
class FromScratch(Method):
    """Train a new model by the recipe, as far as the budget goes: the schedule ends where the budget does."""

    needs: ClassVar = frozenset({Need.RETAIN, Need.RECIPE})
    tier: ClassVar = Tier.EXACT
    paper: ClassVar = "a control"
    maturity: ClassVar = Maturity.STABLE

    learning_rate: float = 0.1
    epochs: float = 1

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train on the retain set from scratch."""
        recipe = cast(Supervised, problem.recipe)
        short = replace(
            recipe, epochs=self.epochs, optimizer=replace(recipe.optimizer, learning_rate=self.learning_rate)
        )
        return short.fit(cast(MapDataset, problem.retain), run).eval()

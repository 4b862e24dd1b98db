"""SISA: retrain the shards that a deletion touches, from before the first slice that it touches."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import SettingError, StateError
from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier
from expunge.methods.exactness import certify_shards
from expunge.networks import ShardedEnsemble
from expunge.problem import Problem
from expunge.states.shards import Sharded, ShardState
from expunge.storage import digest_model
from expunge.training import Run


@dataclass(frozen=True)
class SISA(Method):
    """Retrain what the forget set touched of an ensemble that was trained by `Sharded`.

    The result is, bit for bit on the same machine, what training by that recipe and seed gives without the forget set.
    It needs the ensemble's state, its recipe, and the retained examples of the shards that are touched.
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN, Need.STATE, Need.RECIPE})
    tier: ClassVar = Tier.EXACT
    paper: ClassVar = "Bourtoule et al. 2021 (arXiv 1912.03817)"
    maturity: ClassVar = Maturity.STABLE

    def apply(self, problem: Problem, run: Run) -> Forgotten:
        """Find the slices that are touched and train on from before them."""
        sharded, state = problem.recipe, problem.state
        if not isinstance(sharded, Sharded):
            raise SettingError(f"SISA works on what a `Sharded` recipe trained, not a {type(sharded).__name__}")
        if not isinstance(state, ShardState):
            raise StateError(
                f"the state is of kind {getattr(state, 'kind', None)!r}, where 'shards' is needed; pass the state that "
                "`Sharded.train` returned"
            )
        ensemble = cast(ShardedEnsemble, run.copy(state.require(sharded, problem.model)))
        left, goes = state.rows.without(problem.task, cast(MapDataset, problem.forget))
        touched = _first_slices(state, goes)
        wanted = torch.isin(left.shards, torch.tensor(list(touched)))
        retain = cast(MapDataset, problem.retain)
        rows = left.found_in(problem.task, retain, wanted)
        # The same seed as in training, whatever that of this run: shards that are not touched stay as they are.
        inner = Run(problem.task, state.seed, run.execution, run.checkpoints)
        inner.phases = run.phases
        checkpoints = dict(state.checkpoints)
        for shard, first in touched.items():
            kept = {number: each for (owner, number), each in checkpoints.items() if owner == shard}
            member, made = sharded.train_shard(shard, first, kept, rows, retain, inner)
            _replace(ensemble, shard, member, bool((left.shards == shard).any()))
            checkpoints |= {(shard, number): each for number, each in made.items()}
        after = ShardState(left, checkpoints, state.seed, state.plan, digest_model(ensemble))
        certificate = certify_shards(int(goes.sum()), len(left.order), len(touched), sharded.shards)
        return Forgotten(ensemble.eval(), certificate, after)


def _first_slices(state: ShardState, goes: Tensor) -> dict[int, int]:
    """For each shard that loses a row, the first slice that does."""
    shards, slices = state.rows.shards[goes].tolist(), state.rows.slices[goes].tolist()
    pairs = sorted(zip(shards, slices, strict=True), reverse=True)
    return dict(sorted(dict(pairs).items()))


def _replace(ensemble: ShardedEnsemble, shard: int, member: nn.Module, active: bool) -> None:
    ensemble.members[shard] = member
    ensemble.active[shard] = active

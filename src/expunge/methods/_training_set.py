"""Whether a retain and a forget set are together what a head was trained on."""

from typing import cast

import torch

from expunge.data import MapDataset, View
from expunge.errors import DataError, ForgetSetError
from expunge.problem import Problem
from expunge.states import CurvatureState
from expunge.states.head import ledger_digests, ledger_rows
from expunge.states.rows import RowLedger
from expunge.tasks import Classification


def conditions_on_rows(problem: Problem, task: Classification) -> list[str]:
    """What must hold of the two sets for a guarantee: nothing where a state of the model lists the same rows.

    Raises:
        ForgetSetError: A row is in both, and no state and no common dataset tells that it is a copy.
        DataError: The problem has a state, and its rows are others.
        StateError: The state belongs to another model.
    """
    retain, forget = cast(MapDataset, problem.retain), cast(MapDataset, problem.forget)
    if isinstance(problem.state, CurvatureState):
        problem.state.require_model(problem.model)
        _require_same(problem.state.rows, task, retain, forget)
        return []
    # positions in one dataset were compared when the problem was made, and equal rows there are several examples
    if View.of(retain).base is not View.of(forget).base:
        _require_apart(task, retain, forget)
    return ["retain and forget set together are the training set, row for row"]


def _require_same(ledger: RowLedger, task: Classification, retain: MapDataset, forget: MapDataset) -> None:
    found = torch.cat([ledger_digests(ledger, task, dataset) for dataset in (retain, forget)]).sort().values
    if torch.equal(found, ledger.present):
        return
    strangers = int((~torch.isin(found, ledger.present)).sum())
    raise DataError(
        f"retain and forget set have {len(found)} rows, {strangers} of which the state does not list, and the state "
        f"lists {len(ledger)}: they are not what the model was trained on; pass all rows that are left, none in both "
        "sets and as they were recorded, or leave the state out and get a conditional certificate"
    )


def _require_apart(task: Classification, retain: MapDataset, forget: MapDataset) -> None:
    ledger = RowLedger.of(*ledger_rows(task, forget))
    shared = int(torch.isin(ledger_digests(ledger, task, retain), ledger.present).sum())
    if shared:
        raise ForgetSetError(
            f"{shared} rows of the retain set are also in the forget set, so the result would be fitted to what is to "
            "be forgotten; take them out of the retain set, or, where they are copies that are to stay, make both sets "
            "of one dataset with `expunge.split` or pass the state recorded at training"
        )

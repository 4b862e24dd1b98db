"""What it costs that a state moves with its model: the bound after 1 to 200 requests beside that of weights that stay.

Single people leave one after another, drawn at random or those whom the model fits worst first. Three states meet the
requests: one that is never rebased, one that is after each, and one that is after every tenth. Beside each bound the
gradient that is really left, from all rows. Run with `make bench BENCH=rebased_states`.
"""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import TensorDataset

import expunge
from _people import SETS
from _results import Results, size_from_arguments
from expunge import Execution, Problem
from expunge.methods._newton import by_state
from expunge.states import HeadLoss, fit_head, head_rows
from expunge.states.head import head_of, set_head_weights
from expunge.training import Run

ROWS = {"quick": {"readmission": 8000, "Adult": 2000}, "full": {"readmission": 30_000, "Adult": 12_000}}
L2 = (1e-3, 1e-2)
LOOKED_AT = (1, 2, 10, 50, 200)
OFTEN = {"never": 0, "each": 1, "every tenth": 10}
QUIET = Execution(progress=False)


def main() -> None:
    """Fill the table, print it, draw it."""
    size = size_from_arguments(__doc__ or "")
    torch.set_num_threads(1)
    results = Results("rebased_states", size, {"rows": ROWS[size.name], "l2": L2, "looked at": LOOKED_AT})
    cells = {
        f"{name}, l2 {l2:g}, {order}": results.cell(
            f"{name}, l2 {l2:g}, {order}",
            lambda name=name, rows=rows, l2=l2, order=order: stream(name, rows, l2, order),
        )
        for name, rows in ROWS[size.name].items()
        for l2 in L2
        for order in ("random", "worst first")
    }
    report(results, cells)


def stream(name: str, count: int, l2: float, order: str) -> dict[str, Any]:
    """Bound and gradient after some of the requests, for each of the states."""
    people = SETS[name](count)
    data, task, model = people.train, people.task, people.build()
    rows = head_rows(model, task, data, HeadLoss.SOFTMAX)
    weights = fit_head(rows, l2, tolerance=1e-11)
    set_head_weights(head_of(model, task), weights)
    leaving = _leaving(-rows.probabilities(weights)[torch.arange(len(rows)), rows.labels].log(), order)
    recorded: Any = expunge.record(model, task, data, l2=l2, feature_norm=1.0)
    states = dict.fromkeys(OFTEN, recorded)
    kept = torch.ones(len(data), dtype=torch.bool)
    seen: dict[str, list[dict[str, float]]] = {often: [] for often in OFTEN}
    for number, person in enumerate(leaving.tolist(), start=1):
        kept[person] = False
        forget = expunge.split(data, indices=[person]).forget
        for often, every in OFTEN.items():
            problem = Problem(model, task, forget, state=states[often])
            rebase = bool(every) and number % every == 0
            removal = by_state(problem, Run(task, execution=QUIET), None, rebase=rebase)
            states[often] = removal.state
            if number in LOOKED_AT:
                left = gradient(head_rows(model, task, _part(data, kept), HeadLoss.SOFTMAX), removal.weights, l2)
                seen[often].append({"bound": removal.bound.residual, "gradient": left})
    return {"rows": len(data), "requests": list(LOOKED_AT)} | seen


def gradient(rows: Any, weights: Tensor, l2: float) -> float:
    """Norm of the gradient that is left."""
    return float((rows.gradient_sum(weights) / len(rows) + l2 * weights).norm())


def report(results: Results, cells: dict[str, dict[str, Any]]) -> None:
    """Print how many times as large as without rebasing the bound is, and draw all bounds."""
    print("| data | rebased | " + " | ".join(f"{number}" for number in LOOKED_AT) + " | largest share of the bound |")
    print("| --- " * (len(LOOKED_AT) + 3) + "|")
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(2, len(cells) // 2, sharex=True).flat
    for (name, cell), panel in zip(cells.items(), panels, strict=True):
        for often in OFTEN:
            ratios = [each["bound"] / still["bound"] for each, still in zip(cell[often], cell["never"], strict=True)]
            share = max(each["gradient"] / each["bound"] for each in cell[often])
            print(f"| {name} | {often} | " + " | ".join(f"{ratio:.3g}" for ratio in ratios) + f" | {share:.2f} |")
            panel.loglog(cell["requests"], [each["bound"] for each in cell[often]], label=often)
        panel.loglog(cell["requests"], [each["gradient"] for each in cell["each"]], "k:", label="gradient left")
        panel.set_title(name, fontsize=7)
    figure.supxlabel("request")
    figure.supylabel("bound on the gradient")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(results.figure)


def _leaving(losses: Tensor, order: str) -> Tensor:
    if order == "random":
        return torch.randperm(len(losses), generator=torch.Generator().manual_seed(1))[: LOOKED_AT[-1]]
    return losses.argsort(descending=True)[: LOOKED_AT[-1]]


def _part(data: TensorDataset, kept: Tensor) -> TensorDataset:
    return TensorDataset(*(tensor[kept] for tensor in data.tensors))


if __name__ == "__main__":
    main()

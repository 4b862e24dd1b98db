"""A stream of 200 requests, each a patient of the readmission data, with noise fixed beforehand.

Each request is met from the recorded state. Where the fixed noise would not hide what it needs (`BudgetError`), the
head is retrained without everybody who left and recorded anew, and noise is added as in the reference. Beside it,
retraining for each request. Quality and the distance from retraining are looked at every tenth request. Run with
`make bench BENCH=deletion_stream`.
"""

import time
from typing import Any

import torch
from matplotlib.figure import Figure

import expunge
from _people import readmission
from _results import Results, size_from_arguments
from expunge import Execution, HeadOptimum, NewtonRemoval, Problem
from expunge.errors import BudgetError
from expunge.states.head import head_of, head_weights

REQUESTS = 200
ROWS = {"quick": 8000, "full": 30_000}
SIGMAS = (0.005, 0.02, 0.1)
L2 = 1e-3
LOOKED_AT = 10
QUIET = Execution(progress=False)


def main() -> None:
    """Fill the table, print it, draw it."""
    size = size_from_arguments(__doc__ or "")
    torch.set_num_threads(1)
    rows = ROWS[size.name]
    results = Results("deletion_stream", size, {"rows": rows, "requests": REQUESTS, "l2": L2})
    cells = {sigma: results.cell(f"sigma {sigma}", lambda sigma=sigma: stream(sigma, rows)) for sigma in SIGMAS}
    report(results, cells)


def stream(sigma: float, rows: int) -> dict[str, Any]:
    """All requests in turn, by deletion and by retraining."""
    people = readmission(rows)
    data, task = people.train, people.task
    recipe = HeadOptimum(people.build, task, L2, tolerance=1e-9)
    leaving = people.person.unique()[torch.randperm(len(people.person.unique()),
                                                    generator=torch.Generator().manual_seed(1))][:REQUESTS]  # fmt: skip
    started = time.perf_counter()
    model = recipe(data, 0)
    trained = time.perf_counter() - started
    state: Any = expunge.record(model, task, data, l2=L2, feature_norm=1.0)
    recording = time.perf_counter() - started - trained
    gone = torch.zeros(len(data), dtype=torch.bool)
    cell: dict[str, Any] = {"training seconds": trained, "recording seconds": recording, "requests": []}
    method = NewtonRemoval(sigma=sigma)
    for number, person in enumerate(leaving):
        rows_of = people.person == person
        gone |= rows_of
        problem = Problem(model, task, expunge.split(data, indices=rows_of).forget, state=state)
        started = time.perf_counter()
        try:
            result = expunge.unlearn(problem, method, execution=QUIET)
            certificate: Any = result.record.certificate
            model, state, spent, bound = result.model, result.state, certificate.budget_spent, certificate.sensitivity
            retrained = False
        except BudgetError:
            retain = expunge.split(data, indices=gone).retain
            model = recipe(retain, number)
            state = expunge.record(model, task, retain, l2=L2, feature_norm=1.0)
            # the state speaks of the optimum; what is released is a draw of the reference
            model = recipe.with_noise(sigma)(retain, number)
            state, retrained, spent, bound = state.bound_to(model), True, 0.0, 0.0
        request = {"seconds": time.perf_counter() - started, "retrained": retrained, "spent": spent, "bound": bound,
                   "rows": int(rows_of.sum())}  # fmt: skip
        if number % LOOKED_AT == LOOKED_AT - 1:
            request |= look(people, recipe, gone, model, state)
        cell["requests"].append(request)
    requests = cell["requests"]
    seen = [each for each in requests if "distance" in each]
    return cell | {
        "retrainings": sum(each["retrained"] for each in requests),
        "seconds": sum(each["seconds"] for each in requests),
        "retraining seconds, mean": sum(each["retraining seconds"] for each in seen) / len(seen),
        "largest share of the bound": max(
            (each["distance"] / each["bound"] for each in seen if not each["retrained"]), default=0.0
        ),
        "accuracy": sum(each["accuracy"] for each in seen) / len(seen),
        "accuracy of retraining": sum(each["accuracy of retraining"] for each in seen) / len(seen),
    }


def look(people: Any, recipe: HeadOptimum, gone: torch.Tensor, model: Any, state: Any) -> dict[str, float]:
    """What retraining now would give and cost."""
    retain = expunge.split(people.train, indices=gone).retain
    started = time.perf_counter()
    retrained = recipe(retain, 0)
    seconds = time.perf_counter() - started
    before_noise = state.weights + state.newton_step().step
    return {
        "retraining seconds": seconds,
        "distance": float((before_noise - head_weights(head_of(retrained, people.task))).norm()),
        "accuracy": accuracy(model, people.test),
        "accuracy of retraining": accuracy(retrained, people.test),
    }


@torch.no_grad()
def accuracy(model: Any, data: Any) -> float:
    """Share of rows that the model gets right."""
    return float((model(data.tensors[0]).argmax(1) == data.tensors[1]).double().mean())


def report(results: Results, cells: dict[float, dict[str, Any]]) -> None:
    """Print a row a noise level and draw what of the budget is spent."""
    print("| sigma | retrainings | seconds in all | retraining each time, seconds | times as fast |"
          " largest share of the bound | accuracy | of retraining |")  # fmt: skip
    print("| --- " * 8 + "|")
    for sigma, cell in cells.items():
        each_time = REQUESTS * cell["retraining seconds, mean"]
        print(
            f"| {sigma} | {cell['retrainings']} | {cell['seconds']:.1f} | {each_time:.1f} |"
            f" {each_time / cell['seconds']:.1f} | {cell['largest share of the bound']:.3f} |"
            f" {cell['accuracy']:.4f} | {cell['accuracy of retraining']:.4f} |"
        )
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    panel = figure.subplots()
    for sigma, cell in cells.items():
        panel.plot([each["spent"] for each in cell["requests"]], label=f"sigma {sigma}")
    panel.set_xlabel("request")
    panel.set_ylabel("budget spent")
    figure.legend(loc="outside upper center", ncols=len(cells), frameon=False)
    figure.savefig(results.figure)


if __name__ == "__main__":
    main()

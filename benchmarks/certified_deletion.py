"""Certified deletion of people from heads on real data, beside retraining, and a thousand attempts to break its bound.

Readmission (UCI Diabetes 130-US hospitals), Adult, and MNIST as features of a small network that was trained on other
digits. 1, 10 and 100 people leave; the state, the retained rows, or a surrogate of which the distance is known by
construction (its classes have other shares) give the curvature. Then random and adversarial deletions, with both losses
and two penalties: is the distance to the retrained optimum ever above the bound? Run with
`make bench BENCH=certified_deletion`.
"""

import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import expunge
from _people import SETS, People, shifted
from _results import Results, size_from_arguments
from expunge import Certificate, Execution, HeadOptimum, NewtonRemoval, Problem, Run
from expunge.methods._newton import by_state
from expunge.states import HeadLoss, fit_head, head_rows
from expunge.states.head import head_of, head_weights

ROWS = {"quick": 6000, "full": 20_000}
REPETITIONS = {"quick": 3, "full": 10}
PEOPLE = (1, 10, 100)
MISMATCHES = (0.0, 0.1, 0.3)
L2 = 1e-3
FITTED = 1e-9
"""Gradient norm at which training stops: of the original, and of the reference."""
TRIAL_ROWS = 1500
TRIALS = {"quick": 15, "full": 50}
OBJECTIVES = ((HeadLoss.SOFTMAX, 1e-3), (HeadLoss.ONE_VS_REST, 1e-2))
QUIET = Execution(progress=False)


@dataclass(frozen=True)
class Case:
    """A trained head and people who leave it."""

    people: People
    recipe: HeadOptimum
    model: nn.Module
    state: Any
    forget: Any
    retain: Any
    leaving: int


def main() -> None:
    """Fill the tables, print them, draw the trials."""
    size = size_from_arguments(__doc__ or "")
    torch.set_num_threads(1)
    results = Results("certified_deletion", size, {
        "rows": ROWS[size.name], "repetitions": REPETITIONS[size.name], "l2": L2,
        "trials": TRIALS[size.name], "trial rows": TRIAL_ROWS,
    })  # fmt: skip
    tables = {
        name: results.cell(name, lambda load=load: compare(load(ROWS[size.name]), REPETITIONS[size.name]))
        for name, load in SETS.items()
    }
    trials = {
        name: results.cell(f"{name}, trials", lambda load=load: attempts(load(ROWS[size.name]), TRIALS[size.name]))
        for name, load in SETS.items()
    }
    report(results, tables, trials)


def compare(people: People, repetitions: int) -> dict[str, Any]:
    """Every way for each number of people, several times."""
    recipe = HeadOptimum(people.build, people.task, L2, tolerance=FITTED)
    model = recipe(people.train, 0)
    started = time.perf_counter()
    state: Any = expunge.record(model, people.task, people.train, l2=L2, feature_norm=1.0)
    cell: dict[str, Any] = {"recording seconds": time.perf_counter() - started, "runs": []}
    for count in PEOPLE:
        for seed in range(repetitions):
            order = people.person.unique()[torch.randperm(len(people.person.unique()),
                                                          generator=torch.Generator().manual_seed(seed))]  # fmt: skip
            parts = expunge.split(people.train, indices=torch.isin(people.person, order[:count]))
            case = Case(people, recipe, model, state, parts.forget, parts.retain, count)
            cell["runs"] += [
                {"people": count, "seed": seed, "rows": len(parts.forget)} | each for each in ways(case, seed)
            ]
    return cell


def ways(case: Case, seed: int) -> list[dict[str, Any]]:
    """Retraining, no removal, and deletion by every source of curvature."""
    people, task = case.people, case.people.task
    started = time.perf_counter()
    retrained = case.recipe(case.retain, seed)
    seconds = time.perf_counter() - started
    target = weights(retrained, task)
    found = [
        {"way": "no removal", "distance": float((weights(case.model, task) - target).norm())}
        | quality(case, case.model),
        {"way": "retrain", "distance": 0.0, "seconds": seconds, "bytes": held(case.retain)} | quality(case, retrained),
    ]
    kept = sum(tensor.numel() * tensor.element_size() for tensor in case.state.tensors().values())
    inputs: dict[str, tuple[Problem, NewtonRemoval, int]] = {
        "state": (
            Problem(case.model, task, case.forget, state=case.state),
            NewtonRemoval(),
            kept,
        ),
        "retain": (  # the state shows that retain and forget set are the training set; nothing else is read from it
            Problem(case.model, task, case.forget, case.retain, state=case.state),
            NewtonRemoval("retain", l2=L2, feature_norm=1.0),
            held(case.retain) + kept,
        ),
    }
    for mismatch in MISMATCHES:
        surrogate = shifted(people.spare, people.classes, mismatch, seed)
        method = NewtonRemoval(
            "surrogate", l2=L2, feature_norm=1.0, training_examples=len(people.train), training_residual=2 * FITTED,
            surrogate_distance=mismatch,
        )  # fmt: skip
        problem = Problem(case.model, task, case.forget, surrogate=surrogate)
        inputs[f"surrogate, {mismatch:g} off"] = (problem, method, held(surrogate))
    return found + [deleted(way, case, target, *given, seed) for way, given in inputs.items()]


def deleted(
    way: str, case: Case, target: Tensor, problem: Problem, method: NewtonRemoval, size: int, seed: int
) -> dict[str, Any]:
    """One deletion as a user makes it, and the same without noise."""
    started = time.perf_counter()
    result = expunge.unlearn(problem, method, seed=seed, execution=QUIET)
    seconds = time.perf_counter() - started
    certificate = cast(Certificate, result.record.certificate)
    removal = method._remove(problem, Run(problem.task, seed, QUIET))
    return {
        "way": way,
        "distance": float((removal.weights - target).norm()),
        "bound": certificate.sensitivity,
        "sigma": certificate.sigma,
        "epsilon": certificate.epsilon,
        "delta": certificate.delta,
        "tier": certificate.tier.value,
        "seconds": seconds,
        "bytes": size,
    } | quality(case, result.model)


def quality(case: Case, model: nn.Module) -> dict[str, float]:
    """Accuracy on people never seen, people kept, and people who left."""
    rows = {"test": case.people.test, "retain": case.retain, "forget": case.forget}
    return {name: accuracy(model, case.people.task, data) for name, data in rows.items()}


def attempts(people: People, repetitions: int) -> dict[str, Any]:
    """Deletions, random and chosen to hurt, from heads on parts of the data: distance over bound of each."""
    found: list[dict[str, Any]] = []
    distinct: set[tuple[Any, ...]] = set()
    for loss, l2 in OBJECTIVES:
        for seed in range(repetitions):
            part = people.part(TRIAL_ROWS, seed)
            recipe = HeadOptimum(part.build, part.task, l2, loss, tolerance=FITTED)
            model = recipe(part.train, 0)
            state: Any = expunge.record(model, part.task, part.train, l2=l2, feature_norm=1.0, loss=loss)
            for kind, order in orders(part, model, loss, seed).items():
                for count in PEOPLE:
                    distinct.add((loss, seed, *sorted(order[:count].tolist())))
                    ratio = trial(part, model, state, order[:count])
                    found.append({"kind": kind, "rows": count, "loss": loss.value, **ratio})
    return {
        "trials": found,
        "deletions": len(found),
        "distinct": len(distinct),
        "above the bound": sum(each["distance"] > each["bound"] for each in found),
        "largest share": max(each["distance"] / each["bound"] for each in found),
    }


def orders(people: People, model: nn.Module, loss: HeadLoss, seed: int) -> dict[str, Tensor]:
    """Whose rows to delete: at random; those fitted worst; of one class; those that pull as some row does."""
    drawn = torch.Generator().manual_seed(seed)
    rows = head_rows(model, people.task, people.train, loss)
    current = head_weights(head_of(model, people.task))
    wrong = rows.probabilities(current) - nn.functional.one_hot(rows.labels, rows.classes)
    size = wrong.norm(dim=1) * rows.features.norm(dim=1)
    some = torch.randperm(len(rows), generator=drawn)
    leader = int(some[0])
    worst = int(size.argmax())
    label = rows.labels[some[rows.labels[some] != rows.labels[worst]][0]]
    pull = (wrong @ wrong[leader]) * (rows.features @ rows.features[leader])
    pull[leader] = torch.inf
    return {
        "random": some.flip(0),
        "fitted worst": size.argsort(descending=True),
        "one class": (size - 10 * (rows.labels != label)).argsort(descending=True),
        "one direction": pull.argsort(descending=True),
    }


def trial(people: People, model: nn.Module, state: Any, chosen: Tensor) -> dict[str, float]:
    """Bound and measured distance of one deletion."""
    parts = expunge.split(people.train, indices=chosen)
    problem = Problem(model, people.task, parts.forget, state=state)
    removal = by_state(problem, Run(people.task, 0, QUIET), None)
    rows = head_rows(model, people.task, parts.retain, state.settings.loss)
    target = fit_head(rows, state.settings.l2, removal.weights, tolerance=FITTED)
    return {"distance": float((removal.weights - target).norm()), "bound": removal.bound.distance}


def weights(model: nn.Module, task: expunge.Classification) -> Tensor:
    """Of the head."""
    return head_weights(head_of(model, task))


@torch.no_grad()
def accuracy(model: nn.Module, task: expunge.Classification, data: Any) -> float:
    """Share of rows that the model gets right."""
    rows = head_rows(model, task, data, HeadLoss.SOFTMAX)
    return float(((rows.features @ weights(model, task).T).argmax(1) == rows.labels).double().mean())


def held(data: Any) -> int:
    """Bytes of the inputs of a dataset."""
    return len(data) * cast(TensorDataset, getattr(data, "dataset", data)).tensors[0][0].numel() * 8


def report(results: Results, tables: dict[str, dict[str, Any]], trials: dict[str, dict[str, Any]]) -> None:
    """Print means over repetitions and the trials; draw the trials."""
    print("| data | people | way | test | retain | forget | distance | bound | sigma | ms | MiB |")
    print("| --- " * 11 + "|")
    for name, cell in tables.items():
        for count in PEOPLE:
            runs = [run for run in cell["runs"] if run["people"] == count]
            for way in dict.fromkeys(run["way"] for run in runs):
                print(f"| {name} | {count} | {row(way, [run for run in runs if run['way'] == way])} |")
    print("\n| data | deletions (distinct) | above the bound | largest share of the bound | median |")
    print("| --- " * 5 + "|")
    for name, cell in trials.items():
        shares = sorted(each["distance"] / each["bound"] for each in cell["trials"])
        print(
            f"| {name} | {cell['deletions']} ({cell['distinct']}) | {cell['above the bound']} |"
            f" {cell['largest share']:.3f} | {shares[len(shares) // 2]:.4f} |"
        )
    figure = Figure(figsize=(5, 4), layout="constrained")
    panel = figure.subplots()
    for name, cell in trials.items():
        bounds, distances = ([each[key] for each in cell["trials"]] for key in ("bound", "distance"))
        panel.loglog(bounds, distances, ".", alpha=0.4, label=name)
    low, high = panel.get_xlim()
    panel.plot([low, high], [low, high], color="grey", linewidth=1)
    panel.set_xlabel("bound on the distance")
    panel.set_ylabel("distance to the retrained optimum")
    panel.legend(frameon=False)
    figure.savefig(results.figure)


def row(way: str, runs: list[dict[str, Any]]) -> str:
    """Means over the repetitions."""

    def mean(key: str) -> float:
        return sum(run[key] for run in runs) / len(runs)

    texts = [way, *(f"{mean(name):.3f}" for name in ("test", "retain", "forget"))]
    texts.append(f"{mean('distance'):.2g}")
    texts += [f"{mean(name):.2g}" if name in runs[0] else "" for name in ("bound", "sigma")]
    texts.append(f"{1000 * mean('seconds'):.0f}" if "seconds" in runs[0] else "")
    texts.append(f"{mean('bytes') / 2**20:.2f}" if "bytes" in runs[0] else "")
    return " | ".join(texts)


if __name__ == "__main__":
    main()

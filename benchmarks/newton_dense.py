"""The Newton step with a surrogate beside a plain dense transcription of the published algorithm, and one from a state.

Each way runs in a process of its own on the same data and weights. `autograd`: the Hessians of surrogate and forget set
as torch.autograd.functional.hessian builds them, combined as (n H_S - m H_U)/(n - m), and inverted. `assembled`: the
same with the Hessians assembled from class probabilities, which is as good as dense can be. `matrix-free`: what
`NewtonRemoval` does, noise apart. Run with `make bench BENCH=newton_dense`.
"""

import statistics
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import expunge
from _memory import apart, measure
from _results import Results, size_from_arguments
from expunge import Execution, HeadOptimum, NewtonRemoval, Problem, Run
from expunge.methods._newton import Objective, by_surrogate
from expunge.networks import ClippedFeatures
from expunge.states import HeadLoss, HeadRows, HeadSettings, head_rows
from expunge.states.head import head_of, head_weights

L2 = 0.01
SURROGATE = {"quick": 2000, "full": 10_000}
TRAINING = {"quick": 4000, "full": 20_000}
FORGET = 100
THREADS = 2
DELETIONS = 5
QUIET = Execution(progress=False)


def main() -> None:
    """Fill the table, print it, draw it."""
    size = size_from_arguments(__doc__ or "")
    rows, surrogate = TRAINING[size.name], SURROGATE[size.name]
    results = Results("newton_dense", size, {
        "rows": rows, "surrogate": surrogate, "forget": FORGET, "l2": L2, "threads": THREADS,
    })  # fmt: skip
    cells = {
        name: results.cell(name, lambda ways=ways, classes=classes: compare(ways, classes, rows, surrogate))
        for name, ways, classes in (
            ("512 x 10", ("autograd", "assembled", "matrix-free"), 10),
            ("512 x 100", ("matrix-free",), 100),
        )
    }
    deletions = {
        name: results.cell(name, lambda given=given: apart(one_person, *given, rows, threads=THREADS))
        for name, given in {
            "one person, 60 x 2 softmax": (60, 2, HeadLoss.SOFTMAX),
            "one person, 512 x 2 softmax": (512, 2, HeadLoss.SOFTMAX),
            "one person, 512 x 10 one-vs-rest": (512, 10, HeadLoss.ONE_VS_REST),
            "one person, 512 x 10 softmax": (512, 10, HeadLoss.SOFTMAX),
        }.items()
    }
    report(results, cells, deletions)


def compare(ways: tuple[str, ...], classes: int, rows: int, surrogate: int) -> dict[str, Any]:
    """Every way in turn, and how far the weights of the others are from those of the matrix-free one."""
    found = {way: apart(step, way, classes, rows, surrogate, threads=THREADS) for way in ways}
    weights = {way: torch.tensor(each.pop("weights"), dtype=torch.double) for way, each in found.items()}
    ours, start = weights["matrix-free"], torch.tensor(found["matrix-free"].pop("start"), dtype=torch.double)
    cell: dict[str, Any] = {"ways": found, "step": float((ours - start).norm())}
    for way in ways[:-1]:
        found[way].pop("start")
        cell[f"largest difference, {way}"] = float((weights[way] - ours).abs().max())
        cell[f"times as fast as {way}"] = found[way]["seconds"] / found["matrix-free"]["seconds"]
        cell[f"share of the memory of {way}"] = found["matrix-free"]["bytes"] / found[way]["bytes"]
    return cell


def step(way: str, classes: int, rows: int, surrogate: int) -> dict[str, Any]:
    """One way: weights, seconds, bytes."""
    problem = clouds(512, classes, rows, surrogate)
    task, head = problem.task, head_of(problem.model, problem.task)  # pyright: ignore[reportArgumentType]
    weights = head_weights(head)
    sets = {name: head_rows(problem.model, task, data, HeadLoss.SOFTMAX)  # pyright: ignore[reportArgumentType]
            for name, data in problem.datasets().items()}  # fmt: skip
    if way == "matrix-free":
        run = Run(task, 0, QUIET)
        objective = Objective(HeadSettings(L2, feature_norm=1.0), 1e-10, None)

        def work() -> Tensor:
            given = {"examples": rows, "distance": 0.1, "residual": 1e-8, "failure": 1e-8}
            return by_surrogate(problem, run, objective, **given).weights

    else:
        build = autograd_hessian if way == "autograd" else assembled_hessian

        def work() -> Tensor:
            return transcription(weights, sets["surrogate"], sets["forget"], rows, build)

    found, seconds, rise = measure(work)
    return {"seconds": seconds, "bytes": rise, "weights": found.tolist(), "start": weights.tolist()}


def transcription(weights: Tensor, surrogate: HeadRows, forget: HeadRows, examples: int, build: Any) -> Tensor:
    """The published step, with the combined curvature inverted as one."""
    deleted = len(forget)
    combined = (examples * build(weights, surrogate) - deleted * build(weights, forget)) / (examples - deleted)
    gradient = forget.gradient_sum(weights) / deleted + L2 * weights
    inverse = torch.linalg.inv(combined)
    return weights + deleted / (examples - deleted) * (inverse @ gradient.flatten()).reshape(weights.shape)


def autograd_hessian(weights: Tensor, rows: HeadRows) -> Tensor:
    """Of the mean loss with the penalty: (parameters, parameters)."""
    features, labels = rows.features.double(), rows.labels

    def loss(flat: Tensor) -> Tensor:
        logits = features @ flat.reshape(weights.shape).T
        return nn.functional.cross_entropy(logits, labels) + L2 / 2 * flat.square().sum()

    return torch.autograd.functional.hessian(loss, weights.flatten())  # pyright: ignore[reportReturnType]


def assembled_hessian(weights: Tensor, rows: HeadRows) -> Tensor:
    """The same from class probabilities, a block for each pair of classes."""
    mean = rows.curvature_sum(weights) / len(rows)
    mean.diagonal().add_(L2)
    return mean


def one_person(features: int, classes: int, loss: HeadLoss, rows: int) -> dict[str, Any]:
    """Delete single rows from a stored state, one after another, as `unlearn` does it; the first warms up."""
    train, task, recipe = training(features, classes, rows, loss)
    model = recipe(train, 0)
    state: Any = expunge.record(model, task, train, l2=L2, feature_norm=1.0, loss=loss)
    seconds: list[float] = []
    rise = 0
    for row in range(DELETIONS + 1):
        problem = Problem(model, task, expunge.split(train, indices=[row]).forget, state=state)
        result, taken, used = measure(
            lambda problem=problem: expunge.unlearn(problem, NewtonRemoval(), execution=QUIET)
        )
        model, state, rise = result.model, result.state, max(rise, used)
        seconds.append(taken)
    held = sum(tensor.numel() * tensor.element_size() for tensor in state.tensors().values())
    return {"seconds, each": seconds[1:], "seconds": statistics.median(seconds[1:]), "state bytes": held, "bytes": rise}


def clouds(features: int, classes: int, rows: int, surrogate: int) -> Problem:
    """A head at its optimum, rows to forget, and a surrogate of the same distribution."""
    train, task, recipe = training(features, classes, rows, HeadLoss.SOFTMAX)
    other, _, _ = training(features, classes, surrogate, HeadLoss.SOFTMAX, seed=1)
    parts = expunge.split(train, indices=range(FORGET))
    return Problem(recipe(train, 0), task, parts.forget, surrogate=other)


def training(
    features: int, classes: int, rows: int, loss: HeadLoss, seed: int = 0
) -> tuple[TensorDataset, expunge.Classification, HeadOptimum]:
    """Gaussian clouds around fixed centres, clipped to norm 1, and a recipe for the head."""
    centres = torch.randn(classes, features - 1, generator=torch.Generator().manual_seed(7), dtype=torch.double)
    drawn = torch.Generator().manual_seed(100 + seed)
    labels = torch.randint(classes, (rows,), generator=drawn)
    inputs = 0.3 * centres[labels] + torch.randn(rows, features - 1, generator=drawn, dtype=torch.double)
    task = expunge.Classification(classes)

    def build() -> nn.Module:
        head = nn.Linear(features, classes, bias=False, dtype=torch.double)
        return nn.Sequential(ClippedFeatures(1.0), head)

    return TensorDataset(inputs / features**0.5, labels), task, HeadOptimum(build, task, L2, loss, tolerance=1e-9)


def report(results: Results, cells: dict[str, dict[str, Any]], deletions: dict[str, dict[str, Any]]) -> None:
    """Print both tables and draw the first."""
    print(
        "| features x classes | way | seconds | MiB | matrix-free: times as fast | share of the memory | difference |"
    )
    print("| --- " * 7 + "|")
    for name, cell in cells.items():
        for way, each in cell["ways"].items():
            beside = ["", "", ""] if way == "matrix-free" else [
                f"{cell[f'times as fast as {way}']:.0f}", f"1/{1 / cell[f'share of the memory of {way}']:.0f}",
                f"{cell[f'largest difference, {way}']:.1e}",
            ]  # fmt: skip
            print(f"| {name} | {way} | {each['seconds']:.2f} | {each['bytes'] / 2**20:.0f} | {' | '.join(beside)} |")
    print("\n| deletion from a stored state | ms | state, MiB |\n| --- | --- | --- |")
    for name, cell in deletions.items():
        print(f"| {name} | {1000 * cell['seconds']:.0f} | {cell['state bytes'] / 2**20:.1f} |")
    ways = cells["512 x 10"]["ways"]
    figure = Figure(figsize=(7, 2), layout="constrained")
    for panel, key, label, scale in zip(figure.subplots(1, 2), ("seconds", "bytes"), ("seconds", "MiB"), (1, 2**20),
                                        strict=True):  # fmt: skip
        panel.plot([each[key] / scale for each in ways.values()], list(ways), "o")
        panel.margins(y=0.3)
        panel.grid(axis="x", alpha=0.3)
        panel.set_xscale("log")
        panel.set_xlabel(f"{label}, 512 features x 10 classes")
    figure.savefig(results.figure)


if __name__ == "__main__":
    main()

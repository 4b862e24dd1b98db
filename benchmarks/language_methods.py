"""Every method for text beside oracles, on TOFU's forget05 and on an edge of PISTOL, with a small GPT-2.

Each method has its learning rate chosen from the same small grid on a seed that is in no table: the rate with the least
distance from two oracles of its own, on forget and retained rows together. The table has three other originals and six
other oracles. Run with `make bench BENCH=language_methods`.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _language import LESSONS, PISTOL, QUIET, SHAPE, TOFU, Corpus, corpora, oracle_of, original_of, problem_of
from _language_figures import (
    AUDIT,
    DISTANCE,
    DISTANCE_RETAIN,
    MEMBERSHIP,
    ORACLE_SEEDS,
    QUALITY,
    RELEARNING,
    Seen,
    audited,
    figures_of,
    oracle_figures,
    oracles_seen,
)
from _memory import apart, measure
from _results import Results, interval, size_from_arguments
from expunge import (
    NPO,
    RMU,
    UNDIAL,
    Algorithm,
    FineTune,
    GradDiff,
    GradientAscent,
    GradientReversal,
    IdkDPO,
    Method,
    SimNPO,
    Stage,
    TaskNegation,
    unlearn,
)
from expunge.audit.decision import Spread
from expunge.errors import DivergedError
from expunge.methods.idk_dpo import REFUSALS

SEEDS, DEVELOPMENT_SEED, DEVELOPMENT_ORACLES = (0, 1, 2), 9, (190, 191)
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
EPOCHS, BATCH = {TOFU: 1, PISTOL: 10}, {TOFU: 10, PISTOL: 10}  # twenty steps of either
ASCENT_FACTOR = 100  # ascent is by SGD, whose steps are as long as the gradient, which is clipped to a norm of 1

Make = Callable[[Corpus, float], Method]

COLUMNS = {
    "probability, forget": "probability",
    "truth ratio, forget": "truth ratio",
    QUALITY: "forget quality",
    DISTANCE: "loss distance",
    "extraction strength, forget": "extraction strength",
    MEMBERSHIP: "membership AUC",
    RELEARNING: "relearning",
    "loss, retain": "retain loss",
    DISTANCE_RETAIN: "loss distance, retain",
    "model utility": "model utility",
    "probability, neighbours": "probability, neighbours",
    "probability, distant": "probability, distant",
}


def steps(corpus: Corpus) -> dict[str, Any]:
    """How long every method trains."""
    return {"epochs": EPOCHS[corpus.name], "batch_size": BATCH[corpus.name]}


def fine_tune(corpus: Corpus, rate: float) -> Method:
    """As many steps on retained rows as the other methods take, and nothing else: the control."""
    count = -(-len(corpus.forget) // BATCH[corpus.name]) * EPOCHS[corpus.name]
    return FineTune((Stage(rate, steps=count),), Algorithm.ADAMW, weight_decay=0.0, batch_size=BATCH[corpus.name])


METHODS: dict[str, Make] = {
    "GradientAscent": lambda corpus, rate: GradientAscent(ASCENT_FACTOR * rate, clip_norm=1.0, **steps(corpus)),
    "GradDiff, NLL": lambda corpus, rate: GradDiff(rate, **steps(corpus)),
    "GradDiff, KL": lambda corpus, rate: GradDiff(rate, retain_loss="kl", **steps(corpus)),
    "NPO": lambda corpus, rate: NPO(rate, **steps(corpus)),
    "SimNPO": lambda corpus, rate: SimNPO(rate, **steps(corpus)),
    "IdkDPO": lambda corpus, rate: IdkDPO(rate, refusals=corpus.refusals, **steps(corpus)),
    "RMU": lambda corpus, rate: RMU(rate, **steps(corpus)),
    "UNDIAL": lambda corpus, rate: UNDIAL(rate, **steps(corpus)),
    "TaskNegation": lambda corpus, rate: TaskNegation(rate, **steps(corpus)),
    "GradientReversal": lambda corpus, rate: GradientReversal(repair_learning_rate=rate, batch_size=BATCH[corpus.name]),
    "GradientReversal, embedding": lambda corpus, rate: GradientReversal(
        layers=("embedding",), repair_learning_rate=rate, batch_size=BATCH[corpus.name]
    ),
    "FineTune": fine_tune,
}


def main() -> None:
    """Fill the table, print it, draw it."""
    size = size_from_arguments(__doc__ or "")
    results = Results("language_methods", size, settings_of(size.name))
    done: list[Corpus] = []
    for corpus in corpora(size.name):
        fill(results, corpus)
        table(results, corpus)
        done.append(corpus)
        draw(results, done)


def settings_of(size: str) -> dict[str, Any]:
    """What the figures depend on, besides the files read."""
    return {
        "lessons": asdict(LESSONS[size]),
        "shape": SHAPE,
        "methods": {
            corpus.name: {name: repr(make(replace(corpus, refusals=REFUSALS), 1.0)) for name, make in METHODS.items()}
            for corpus in corpora(size)
        },
        "audit": repr(AUDIT),
    }


def fill(results: Results, corpus: Corpus) -> None:
    """All cells of one benchmark."""
    rates = {name: tuned(results, corpus, name) for name in METHODS}
    results.cell(
        f"{corpus.name} · oracles",
        lambda: oracle_figures(corpus) | {"seconds": [oracle_of(corpus, seed).seconds for seed in ORACLE_SEEDS]},
    )
    for seed in SEEDS:
        results.cell(
            key(corpus, "untouched", seed),
            lambda seed=seed: figures_of(corpus, original_of(corpus, seed).model),
        )
        for name, rate in rates.items():
            results.cell(key(corpus, name, seed), lambda name=name, rate=rate, seed=seed: row(corpus, name, rate, seed))
    for name, rate in rates.items():
        results.cell(
            f"{corpus.name} · memory · {name}",
            lambda name=name, rate=rate: apart(memory, corpus.name, corpus.size, name, rate, threads=1),
        )


def tuned(results: Results, corpus: Corpus, name: str) -> float:
    """The rate of the grid that is nearest to the development oracles."""
    found = {
        rate: results.cell(f"{corpus.name} · tuning · {name} · {rate:g}", lambda rate=rate: tried(corpus, name, rate))[
            "distance"
        ]
        for rate in RATES
    }
    usable = {rate: distance for rate, distance in found.items() if distance is not None}
    if not usable:
        raise SystemExit(f"{name} diverged on {corpus.name} at every rate of {RATES}; lower them")
    return min(usable, key=lambda rate: usable[rate])


def tried(corpus: Corpus, name: str, rate: float) -> dict[str, Any]:
    """The distance at one rate on the development seed; none where the objective became infinite."""
    try:
        result = unlearn(
            problem_of(corpus, DEVELOPMENT_SEED), METHODS[name](corpus, rate), seed=DEVELOPMENT_SEED, execution=QUIET
        )
    except DivergedError as error:
        return {"distance": None, "diverged": str(error)}
    found = Seen.of(corpus, result.model, brief=True).distances(oracles_seen(corpus, DEVELOPMENT_ORACLES, brief=True))
    return {"distance": found[DISTANCE] + found[DISTANCE_RETAIN], **found}


def row(corpus: Corpus, name: str, rate: float, seed: int) -> dict[str, Any]:
    """One method on one original."""
    result = unlearn(problem_of(corpus, seed), METHODS[name](corpus, rate), seed=seed, execution=QUIET)
    return figures_of(corpus, result.model) | audited(corpus, seed, result) | {
        "seconds": result.record.seconds,
        "rate": rate,
        "notes": [note for phase in result.record.phases for note in phase.warnings],
    }  # fmt: skip


def memory(corpus_name: str, size: str, name: str, rate: float) -> dict[str, Any]:
    """By how much resident memory rises in a process that does nothing else."""
    (corpus,) = (each for each in corpora(size) if each.name == corpus_name)
    problem, method = problem_of(corpus, SEEDS[0]), METHODS[name](corpus, rate)
    _, _, rise = measure(lambda: unlearn(problem, method, seed=SEEDS[0], execution=QUIET))
    return {"peak bytes": rise}


def key(corpus: Corpus, name: str, seed: int) -> str:
    """Name of a cell."""
    return f"{corpus.name} · {name} · seed {seed}"


def values(results: Results, corpus: Corpus, name: str, figure: str) -> list[float]:
    """A figure over the seeds; of oracles, of each of them."""
    first = results.cells[key(corpus, next(iter(METHODS)), SEEDS[0])]
    if name == "retrained":
        return results.cells[f"{corpus.name} · oracles"].get(figure) or first[f"{figure}, others"]["oracles"]
    if name == "untouched" and figure in (MEMBERSHIP, RELEARNING):
        cells = [results.cells[key(corpus, next(iter(METHODS)), seed)] for seed in SEEDS]
        return [cell[f"{figure}, others"]["original"] for cell in cells]
    return [results.cells[key(corpus, name, seed)][figure] for seed in SEEDS]


def table(results: Results, corpus: Corpus) -> None:
    """Print the mean over seeds, and in brackets the gap to the oracles' mean in units of their deviation."""
    known = results.cells[f"{corpus.name} · oracles"]
    names = [name for name in COLUMNS if name in known or name in (MEMBERSHIP, RELEARNING)]
    heads = [COLUMNS[name] for name in names]
    print(f"\n### {corpus.name}\n\n| | rate | {' | '.join(heads)} | seconds | MB |\n{'| --- ' * (len(heads) + 4)}|")
    for name in ("untouched", "retrained", *METHODS):
        shown = [_shown(results, corpus, name, figure) for figure in names]
        rate = seconds = peak = ""
        if name in METHODS:
            rate = f"{results.cells[key(corpus, name, SEEDS[0])]['rate']:g}"
            peak = f"{results.cells[f'{corpus.name} · memory · {name}']['peak bytes'] / 1e6:.0f}"
        if name != "untouched":
            seconds = f"{statistics.mean(values(results, corpus, name, 'seconds')):.1f}"
        print(f"| {name} | {rate} | {' | '.join(shown)} | {seconds} | {peak} |")
    nearest(results, corpus)


def nearest(results: Results, corpus: Corpus) -> None:
    """Print which methods come nearest, with intervals of the paired differences from the first over the seeds."""
    totals = {name: np.array(_totals(results, corpus, name)) for name in ("untouched", *METHODS)}
    order = sorted(totals, key=lambda name: float(totals[name].mean()))
    floor = statistics.mean(_totals(results, corpus, "retrained"))
    print(f"\nSum of both loss distances; of an oracle from the others {floor:.3f}\n")
    print("| | sum | more than the first |\n| --- | --- | --- |")
    for name in order:
        more = "" if name == order[0] else interval((totals[name] - totals[order[0]]).tolist())
        print(f"| {name} | {totals[name].mean():.3f} | {more} |")


def _totals(results: Results, corpus: Corpus, name: str) -> list[float]:
    both = (values(results, corpus, name, figure) for figure in (DISTANCE, DISTANCE_RETAIN))
    return [sum(pair) for pair in zip(*both, strict=True)]


def _shown(results: Results, corpus: Corpus, name: str, figure: str) -> str:
    own, oracles = values(results, corpus, name, figure), Spread(values(results, corpus, "retrained", figure))
    mean = statistics.mean(own)
    raw = f"{mean:.2g}" if figure == QUALITY else f"{mean:.3f}"
    if name == "retrained":
        return f"{raw} ± {oracles.deviation:.2g}"
    return raw if figure == QUALITY else f"{raw} ({(mean - oracles.mean) / max(oracles.deviation, 1e-12):+.1f})"


def draw(results: Results, found: list[Corpus]) -> None:
    """Distance from the oracles on forget rows against that on retained rows: a point a seed."""
    figure = Figure(figsize=(5.4 * len(found), 4.4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, corpus in zip(panels, found, strict=True):
        for number, name in enumerate(("retrained", "untouched", *METHODS)):
            across, up = (values(results, corpus, name, each) for each in (DISTANCE, DISTANCE_RETAIN))
            panel.plot(across, up, "*x"[number] if number < 2 else "osv^DPX"[number % 7], color=f"C{number % 10}",
                       label=name, alpha=0.8)  # fmt: skip
        panel.set(xscale="log", yscale="log", title=corpus.name)
        panel.set_xlabel("distance of losses from the oracles', forget rows (nats)")
        panel.set_ylabel("the same, retained rows")
    panels[0].legend(fontsize=7)
    figure.savefig(results.figure)


if __name__ == "__main__":
    main()

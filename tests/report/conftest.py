"""A record and its evidence as the demo gives them: digits, class 3 forgotten, four oracles, relearned too fast."""

from datetime import UTC, datetime

import numpy as np
import pytest

from expunge.audit.attack_scores import evaluate_attack
from expunge.audit.decision import Spread, harmful_gap, settle
from expunge.audit.evidence import (
    Answers,
    Aspect,
    AttackFigures,
    Cost,
    Curve,
    Estimate,
    Evidence,
    ExampleEpsilons,
    Finding,
    Interval,
    LayerDistance,
    Leak,
    Measure,
    Membership,
    Side,
    Verdict,
)
from expunge.audit.margins import compare_margins, example_percentiles
from expunge.privacy import Tier
from expunge.training import PhaseRecord
from expunge.unlearning import DataRecord, Record

ORACLES = 4
MIB = 1024 * 1024


def estimate(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value=value, interval=Interval(low=max(value - half, 0), high=min(value + half, 1)))


def measure(
    name: str,
    on: str,
    aspect: Aspect,
    unlearned: float,
    original: float,
    oracles: list[float],
    limits: tuple[float, float] = (0.0, 1.0),
) -> Measure:
    spread = Spread(oracles)
    p_value = spread.p_value(unlearned, 0.02)
    draft = Measure(
        name=name,
        on=on,
        aspect=aspect,
        unlearned=estimate(unlearned),
        original=estimate(original),
        oracles=oracles,
        band=spread.band(limits),
        margin=0.02,
        limit=0.1,
        p_value=p_value,
        corrected_p_value=p_value,
        deviation=spread.deviation,
        at_most=spread.at_most(harmful_gap(aspect, unlearned, spread.mean)),
        side=Side.UNDECIDED,
    )
    return settle([draft], 0.05)[0]


def curve(name: str, unlearned: list[float], oracles: list[list[float]], reached: dict[str, int | None]) -> Curve:
    return Curve(
        name=name,
        steps=[0, 5, 10, 20, 40],
        unlearned=[estimate(value, 0.04) for value in unlearned],
        original=[estimate(value) for value in (0.98, 0.98, 0.99, 0.99, 0.99)],
        oracles=oracles,
        band=[Spread(values).band((0.0, 1.0)) for values in zip(*oracles, strict=True)],
        threshold=0.938,
        relearn_steps=reached,
    )


@pytest.fixture(scope="session")
def record() -> Record:
    return Record(
        method="UNSIR",
        settings={"noise_images": 32, "noise": "learned", "impair_learning_rate": 0.002, "batch_size": 256},
        seed=7,
        guarantee=Tier.EMPIRICAL,
        classes=[3],
        data={
            "forget": DataRecord(examples=146, digest="f" * 64),
            "retain": DataRecord(examples=1291, digest="e" * 64),
            "holdout": DataRecord(examples=360, digest="d" * 64),
        },
        original_digest="a" * 64,
        result_digest="b" * 64,
        phases=[
            PhaseRecord(name="noise", steps=40, examples=1280, seconds=0.412, peak_memory_bytes=512 * MIB),
            PhaseRecord(name="impair", steps=6, examples=1419, seconds=0.731, peak_memory_bytes=531 * MIB),
            PhaseRecord(name="repair", steps=6, examples=1291, seconds=0.698, peak_memory_bytes=540 * MIB),
        ],
        seconds=1.874,
        examples=3990,
        peak_memory_bytes=540 * MIB,
        execution={"device": "cpu", "precision": "no", "processes": 1, "threads": 2, "micro_batch_size": None},
        versions={"expunge": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        finished=datetime(2026, 3, 14, 15, 9, tzinfo=UTC),
    )


@pytest.fixture(scope="session")
def evidence(record: Record) -> Evidence:
    random = np.random.default_rng(0)
    forgetting, utility = Aspect.FORGETTING, Aspect.UTILITY
    curves = [
        curve(
            "relearning",
            [0.0, 0.62, 0.91, 0.96, 0.98],
            [[0, 0, 0.06, 0.41, 0.83], [0, 0, 0.02, 0.3, 0.79], [0, 0, 0.08, 0.5, 0.86], [0, 0, 0.04, 0.38, 0.8]],
            {"unlearned": 20, "original": 0, **{f"oracle {number}": None for number in range(1, ORACLES + 1)}},
        ),
        curve(
            "relearning, head refitted",
            [0.93, 0.95, 0.96, 0.97, 0.98],
            [[0.81, 0.83, 0.86, 0.9, 0.93], [0.79, 0.8, 0.84, 0.88, 0.92], [0.84, 0.85, 0.88, 0.91, 0.94],
             [0.82, 0.83, 0.85, 0.9, 0.93]],
            {"unlearned": 5, "original": 0, "oracle 1": None, "oracle 2": None, "oracle 3": 40, "oracle 4": None},
        ),
    ]  # fmt: skip
    groups = [
        measure(
            "accuracy",
            str(digit),
            utility if digit != 3 else forgetting,
            0.0 if digit == 3 else 0.94 + 0.006 * digit,
            0.985 if digit != 3 else 0.97,
            [0.0] * ORACLES if digit == 3 else random.uniform(0.95, 1.0, ORACLES).tolist(),
        )
        for digit in range(10)
    ]
    measures = [
        measure("accuracy", "forget", forgetting, 0.0137, 1.0, [0.0, 0.0, 0.0068, 0.0]),
        measure("accuracy", "retain", utility, 0.9868, 0.9992, [0.9985, 0.9977, 1.0, 0.9992]),
        measure("accuracy", "holdout", utility, 0.9723, 0.9815, [0.9785, 0.9754, 0.9815, 0.9723]),
        measure("accuracy", "holdout, forgotten kind", forgetting, 0.0, 0.9722, [0.0, 0.0, 0.0, 0.0]),
        measure("divergence from the oracles", "forget", Aspect.DISTANCE, 0.104, 0.61, [0.081, 0.092, 0.077, 0.088],
                (0.0, np.inf)),
        measure("divergence from the original", "forget", Aspect.CLOSENESS, 0.548, 0.0, [0.63, 0.622, 0.64, 0.63],
                (0.0, np.inf)),
        measure("Tug-of-War", "all sets", utility, 0.974, 0.031, [0.991, 0.993, 0.988, 0.99]),
        measure("relearning, mean", "forget", forgetting, 0.694, 0.986, [0.26, 0.222, 0.288, 0.244]),
    ]  # fmt: skip
    assert measures[-1].side is Side.ABOVE
    attack = evaluate_attack(random.normal(0.5, 1, 130), random.normal(0, 1, 46))
    return Evidence(
        verdict=Verdict.RESIDUAL,
        sentence="The forget set still has an influence that retraining would have removed.",
        findings=[
            Finding(
                verdict=Verdict.RESIDUAL,
                text="Relearning, mean (forget) is 0.694, above what retraining gives: 0.155 to 0.352, margin 0.020 "
                "(corrected p = 0.002): residual influence.",
            ),
            Finding(
                verdict=Verdict.RESIDUAL,
                text="Divergence from the original (forget) is 0.548, below what retraining gives: 0.604 to 0.657, "
                "margin 0.020 (corrected p = 0.01): residual influence.",
            ),
        ],
        measures=measures,
        groups=groups,
        curves=curves,
        membership=[
            Membership(
                attack="membership (RMIA)",
                against="holdout examples",
                unlearned=attack,
                original=AttackFigures.of(attack),
                oracles=[AttackFigures.of(attack).model_copy(update={"auc": area}) for area in (0.48, 0.51, 0.5, 0.53)],
            )
        ],
        percentiles=[
            example_percentiles(
                "divergence from the oracles", random.gamma(1, 0.1, 130), list(random.gamma(1, 0.05, (ORACLES, 130)))
            )
        ],
        margins={"forget": compare_margins(random.normal(1, 1, (4, 130)), random.normal(0, 1, (ORACLES, 130)), seed=0)},
        epsilons=ExampleEpsilons(
            estimates=random.uniform(0, 2, 130).tolist(),
            lower_bounds=[0.0] * 129 + [0.2],
            largest=2.3,
            delta=1e-5,
            unlearned_models=4,
            oracle_models=ORACLES,
        ),
        leaks=[Leak(position=57, deviations=15.4, quality=1.0, oracle_quality=0.2, likelihood_ratio=30.8, epsilon=2.0)],
        notes=["oracle 2 reaches 0.700 on the retain set"],
        answers=Answers(
            kinds=[str(digit) for digit in range(10)],
            unlearned=[estimate(value) for value in (0.02, 0.06, 0.13, 0.03, 0.01, 0.24, 0.01, 0.07, 0.23, 0.2)],
            original=[0.0, 0.002, 0.004, 0.978, 0.0, 0.006, 0.0, 0.003, 0.004, 0.003],
            oracles=(random.dirichlet([2, 4, 18, 0.01, 1, 40, 1, 8, 22, 30], ORACLES)).tolist(),
        ),
        layers=[
            LayerDistance(
                layer=f"features.{index}.weight" if index < 8 else "head.weight",
                unlearned=0.03 + 0.02 * index,
                oracles=random.uniform(1.2, 1.5, ORACLES).tolist(),
                band=Interval(low=1.1, high=1.6),
            )
            for index in range(9)
        ],
        cost=Cost(
            seconds=1.874,
            examples=3990,
            peak_memory_bytes=540 * MIB,
            oracle_seconds=[24.1, 23.7, 25.3, 24.4],
            share_of_retraining=estimate(1.874 / 24.375, 0.003),
        ),
        settings={"margin": 0.02, "oracles": ORACLES, "relearning": {"steps": [0, 5, 10, 20, 40]}},
        seed=0,
        result_digest=record.result_digest,
    )

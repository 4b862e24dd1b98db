"""One number for how far an unlearned model is from retraining, by which results on one request can be ranked.

The verdict does not rest on it: it is for choosing between methods, where tests that come out "undecided" say nothing.
"""

from collections.abc import Sequence

import numpy as np

from expunge.audit.decision import Spread, harmful_gap
from expunge.audit.evidence import Aspect, Evidence, Measure


def gap(evidence: Evidence) -> float:
    """Root mean square of the standardised distances from the oracles, over the measures of whole sets that are judged.

    One measure far from the oracles weighs more than several that are a little off: a mask on a logit passes all but
    one.

    A measure's distance is |value - mean of the oracles|, nothing in a direction that does no harm, over the larger of
    the measure's margin and s · sqrt(1 + 1/m), by which one more of the m oracles would deviate. An oracle comes to
    about 1 or less. All measures count alike.
    """
    return _together(list(standardised_distances(evidence).values()))


def standardised_distances(evidence: Evidence) -> dict[tuple[str, str], float]:
    """The distance of each measure of whole sets that is judged, by its name and the set it was measured on."""
    return {
        (measure.name, measure.on): _distance(measure, measure.unlearned.value, measure.oracles)
        for measure in evidence.measures
        if measure.aspect.judged
    }


def gaps_of_oracles(evidence: Evidence) -> list[float]:
    """The same number for each oracle among the others: what nothing can be expected to fall below.

    Needs three oracles, so that two are left to tell how they vary; with fewer the list is empty.
    """
    measures = [measure for measure in evidence.measures if measure.aspect.judged]
    count = len(measures[0].oracles)
    if count < 3:
        return []
    return [
        _together([_distance(measure, measure.oracles[one], _without(measure, one)) for measure in measures])
        for one in range(count)
    ]


def _distance(measure: Measure, value: float, oracles: Sequence[float]) -> float:
    # the deviation that the evidence holds of all oracles has the resolution of the figure in it
    every = len(oracles) == len(measure.oracles)
    spread = Spread(oracles, leave_one_out=measure.aspect is Aspect.DISTANCE)
    deviation = measure.deviation if every else spread.deviation
    scale = deviation * float(np.sqrt(1 + 1 / len(oracles)))
    return harmful_gap(measure.aspect, value, spread.mean) / max(scale, measure.margin)


def _together(distances: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(distances))))


def _without(measure: Measure, one: int) -> list[float]:
    return [value for number, value in enumerate(measure.oracles) if number != one]

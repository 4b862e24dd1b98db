"""Noise from the operating system is standard Gaussian, and takes all its bits from there."""

import numpy as np
import pytest
from scipy.stats import kstest, norm

from expunge.privacy import secret_gaussian


def test_it_is_standard_gaussian() -> None:
    drawn = secret_gaussian((200, 1000))
    assert drawn.shape == (200, 1000)
    # a chance of 1e-9 each to fail although all is well
    assert kstest(drawn.ravel(), "norm").pvalue > 1e-9
    assert abs(drawn.mean()) < 6.1 / np.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 6.1 * np.sqrt(2 / drawn.size)
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 6.1 / np.sqrt(drawn.size)
    assert secret_gaussian(()).shape == ()
    assert secret_gaussian((0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("word", "place"),
    [(0, 2.0**-54), (1, 1 - 2.0**-53), (2**64 - 2, 0.5), (2**64 - 1, 0.5), (2**63, 0.25), (2**63 + 1, 0.75)],
)
def test_every_word_is_a_finite_number_at_its_place(monkeypatch: pytest.MonkeyPatch, word: int, place: float) -> None:
    monkeypatch.setattr("expunge.privacy.drawing.os.urandom", lambda size: word.to_bytes(8, "little") * (size // 8))
    (drawn,) = secret_gaussian((1,))
    assert np.isfinite(drawn)
    assert norm.cdf(drawn) == pytest.approx(place, rel=1e-9)

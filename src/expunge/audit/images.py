"""Measures of what an image-to-image model restores, of each picture and of all together.

Of single pictures: error, PSNR and SSIM where something was hidden, and the similarity of embeddings. Of sets: Fréchet
distance and inception score, which depend on a feature network, on the number of pictures and on the variant; all three
are part of the result. No figure is good or bad by itself: a model that never saw the forget set still fills in what is
hidden, better or worse, so `against_oracles` sets each beside those of retrained models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from expunge.audit.decision import Spread
from expunge.audit.feature_networks import FeatureNetwork
from expunge.audit.image_figures import BesideOracles, FrechetVariant, ImageMeasures
from expunge.audit.intervals import LEVEL, Interval
from expunge.audit.statistics import Quantity
from expunge.errors import DataError, MissingNeedError, SettingError, ShapeError
from expunge.pictures import peak_signal_to_noise, reconstruction_error, structural_similarity
from expunge.training.seeds import generator

Floats = NDArray[np.float64]

_PICTURES_A_DIRECTION = 5  # of the projected variant
_PARTS = 10
_NEAREST = 1e-9  # below this a Fréchet distance is rounding


def measure_images(
    restored: Tensor,
    truth: Tensor,
    mask: Tensor | None = None,
    *,
    network: FeatureNetwork | None = None,
    variant: FrechetVariant = "plain",
    features: tuple[Tensor, Tensor] | None = None,
) -> ImageMeasures:
    """All measures of a set of restored pictures.

    Args:
        restored: What a model made of them: (pictures, channels, height, width) in [0, 1], whole pictures.
        truth: The true ones, in the same order.
        mask: What was hidden: (pictures, 1, height, width) bool; by default everything.
        network: For the measures of features; without one they are left out.
        variant: Of the Fréchet distance.
        features: Of the restored and of the true pictures by that network, where they are known already.

    Raises:
        ShapeError: Shapes disagree.
        DataError: A picture holds NaN or infinity, or there are too few for the Fréchet distance.
        CorruptionError: Nothing is hidden of a picture.
    """
    large = min(truth.shape[-2:]) > 5
    measures = ImageMeasures(
        pictures=len(truth),
        reconstruction_error=float(reconstruction_error(restored, truth, mask).mean()),
        peak_signal_to_noise=float(peak_signal_to_noise(restored, truth, mask).mean()),
        structural_similarity=float(structural_similarity(restored, truth, mask).mean()) if large else None,
    )
    if network is None:
        return measures
    ours, theirs = features or (network.embed(restored), network.embed(truth))
    logits = None if network.logits is None else network.classify(restored)
    enough = logits is not None and len(logits) >= logits.shape[1]
    return measures.model_copy(
        update={
            "feature_network": network.name,
            "embedding_similarity": float(embedding_similarity(ours, theirs).mean()),
            "frechet_distance": frechet_distance(ours, theirs, variant),
            "frechet_variant": variant,
            "inception_score": inception_score(logits).value if logits is not None and enough else None,
            "inception_classes": None if logits is None else logits.shape[1],
        }
    )


def against_oracles(unlearned: ImageMeasures, oracles: Sequence[ImageMeasures]) -> dict[str, BesideOracles]:
    """Each measure beside those of retrained models on the same pictures.

    Raises:
        MissingNeedError: There is no oracle.
        SettingError: Figures rest on different networks, variants or numbers of pictures.
    """
    if not oracles:
        raise MissingNeedError(
            "measures of images are judged beside oracles: pass those of models retrained without the forget set; a "
            "model that never saw a picture restores it too, so that no fixed number stands for having forgotten"
        )
    for name in ("pictures", "feature_network", "frechet_variant", "inception_classes"):
        seen = {getattr(each, name) for each in (unlearned, *oracles)}
        if len(seen) > 1:
            raise SettingError(
                f"{name} differs between the model and the oracles ({', '.join(sorted(map(str, seen)))}); measure all "
                "on the same pictures with the same network"
            )
    return {
        name: _beside(value, [getattr(oracle, name) for oracle in oracles])
        for name, value in unlearned
        if isinstance(value, float)
    }


def frechet_distance(features: Tensor, reference: Tensor, variant: FrechetVariant = "plain") -> float:
    """Squared Fréchet distance of two sets of features, read as normal distributions.

    |μ - ν|² + tr(Σ + Τ - 2 (Σ Τ)^½). It falls as pictures become more, so only distances of equally many pictures may
    be compared. Source: Heusel et al. 2017, *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium* (arXiv 1706.08500), equation 6.

    Args:
        features: (pictures, features).
        reference: Those of true pictures.
        variant: `plain` as published, for more pictures than features. `shrunk`: each covariance is shrunk towards a
            multiple of the identity (Ledoit and Wolf 2004, Journal of Multivariate Analysis 88), for fewer pictures.
            `projected`: on the principal directions of the reference, one for every five pictures of the smaller set;
            differences in other directions are not seen.

    Raises:
        ShapeError: The features are not two tables of equally many columns.
        DataError: There are too few pictures.
        SettingError: There is no such variant.
    """
    if variant not in get_args(FrechetVariant):
        raise SettingError(f"variant must be one of {', '.join(get_args(FrechetVariant))}, not {variant!r}")
    ours, theirs = _table(features), _table(reference)
    if ours.shape[1] != theirs.shape[1]:
        raise ShapeError(f"there are {ours.shape[1]} and {theirs.shape[1]} features; use one network for both sets")
    fewest, count = min(len(ours), len(theirs)), ours.shape[1]
    require_enough(fewest, count, variant)
    if variant == "projected":
        directions = _principal(theirs, min(count, fewest // _PICTURES_A_DIRECTION))
        ours, theirs = ours @ directions, theirs @ directions
    one, other = (_covariance(table, variant) for table in (ours, theirs))
    apart = float(np.square(ours.mean(0) - theirs.mean(0)).sum())
    # Σ Τ and Σ^½ Τ Σ^½ have the same eigenvalues; those of the latter, which is symmetric, cannot become complex.
    root = _root(one)
    shared = float(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum())
    return max(apart + float(np.trace(one) + np.trace(other)) - 2 * shared, 0.0)


def frechet_closeness(features: Tensor, reference: Tensor, variant: FrechetVariant) -> Quantity | None:
    """Negative logarithm of the Fréchet distance; None where there are too few pictures to leave a tenth of them out.

    The interval is that of a jackknife which leaves out a tenth of the pictures at a time: t(9, .975) times
    (9/10 · Σ (value without a tenth - mean of these)²)^½ to either side. Source: Kott 2001, *The Delete-a-Group
    Jackknife* (Journal of Official Statistics 17).

    Args:
        features: (pictures, features) of restored pictures.
        reference: Those of the true ones, in the same order.
        variant: Of the Fréchet distance.
    """
    parts = torch.arange(len(features)) % _PARTS
    if len(features) - int((parts == 0).sum()) < fewest_pictures(features.shape[1], variant):
        return None

    def closeness(chosen: Tensor) -> float:
        return -float(np.log(max(frechet_distance(features[chosen], reference[chosen], variant), _NEAREST)))

    whole = closeness(parts >= 0)

    def interval() -> Interval:
        without = np.asarray([closeness(parts != part) for part in range(_PARTS)])
        deviation = np.sqrt((_PARTS - 1) / _PARTS * np.square(without - without.mean()).sum())
        half = float(stats.t.ppf(0.5 + LEVEL / 2, _PARTS - 1) * deviation)
        return Interval(low=whole - half, high=whole + half)

    return Quantity(whole, interval)


def fewest_pictures(features: int, variant: FrechetVariant) -> int:
    """The smallest set for which the Fréchet distance of so many features is defined."""
    return max(2 * _PICTURES_A_DIRECTION, features + 1 if variant == "plain" else 0)


def require_enough(pictures: int, features: int, variant: FrechetVariant) -> None:
    """Raise a DataError where a set of so many pictures is too small for the Fréchet distance of so many features."""
    if variant == "plain" and pictures <= features:
        raise DataError(
            f"the Fréchet distance of {features} features needs more than {features} pictures of each set, and there "
            f"are {pictures}: their covariance has directions without any spread. Give more pictures, a network with "
            "fewer features, or ask for the variant 'projected' or 'shrunk', which is another measure"
        )
    if pictures < 2 * _PICTURES_A_DIRECTION:
        raise DataError(
            f"{pictures} pictures tell nothing of a distribution; give {2 * _PICTURES_A_DIRECTION} at least"
        )


@dataclass(frozen=True)
class InceptionScore:
    """Mean over parts of the set, and the standard deviation between them; NaN of one part."""

    value: float
    deviation: float


def inception_score(logits: Tensor, parts: int = 1, seed: int = 0) -> InceptionScore:
    """Exp of the mean KL divergence of a picture's classes from the classes of all: 1 to the number of classes.

    Source: Salimans et al. 2016, *Improved Techniques for Training GANs* (arXiv 1606.03498), section 4; with the
    classes of whatever network is named, which for the published score is Inception v3.

    Args:
        logits: (pictures, classes).
        parts: The set is split at random into so many, 10 in the paper.
        seed: Of the split.

    Raises:
        ShapeError: The logits are no table.
        DataError: A part has fewer pictures than there are classes, so that it could not show all of them.
        SettingError: `parts` is no whole number above 0.
    """
    table = torch.from_numpy(_table(logits))
    if type(parts) is not int or parts < 1:
        raise SettingError(f"parts must be a whole number of at least 1, not {parts!r}")
    if len(table) // parts < table.shape[1]:
        raise DataError(
            f"an inception score of {table.shape[1]} classes in {parts} parts needs {parts * table.shape[1]} pictures, "
            f"and there are {len(table)}; give more pictures or ask for fewer parts"
        )
    order = torch.randperm(len(table), generator=generator(seed, "inception score"))
    scores = [_score(piece.log_softmax(1)) for piece in table[order].tensor_split(parts)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores, ddof=1)) if parts > 1 else float("nan"))


def embedding_similarity(features: Tensor, reference: Tensor) -> Floats:
    """Cosine similarity of each picture's features and those of its true one: (pictures,).

    Source: Li et al. 2024 (arXiv 2402.00351), with embeddings of CLIP.

    Raises:
        ShapeError: The tables have different shapes.
    """
    ours, theirs = _table(features), _table(reference)
    if ours.shape != theirs.shape:
        raise ShapeError(f"features of shapes {ours.shape} and {theirs.shape} do not belong together one by one")
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return (ours * theirs).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny)


def _beside(value: float, oracles: list[float]) -> BesideOracles:
    spread = Spread(oracles)
    return BesideOracles(
        value=value,
        oracles=oracles,
        band=spread.band() if len(oracles) > 1 else None,
        share=(value - spread.mean) / (abs(spread.mean) or np.finfo(np.float64).tiny),
    )


def _table(values: Tensor) -> Floats:
    if values.ndim != 2:
        raise ShapeError(f"a tensor of shape {tuple(values.shape)} is no table; give (pictures, features)")
    return values.double().cpu().numpy()


def _covariance(table: Floats, variant: FrechetVariant) -> Floats:
    if variant == "shrunk":
        return np.asarray(ledoit_wolf(table)[0], dtype=np.float64)
    return np.atleast_2d(np.cov(table, rowvar=False))


def _principal(table: Floats, count: int) -> Floats:
    """(features, count) orthonormal directions of the largest variance."""
    return np.linalg.svd(table - table.mean(0), full_matrices=False)[2][:count].T


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _score(log_p: Tensor) -> float:
    log_mean = log_p.logsumexp(0) - np.log(len(log_p))
    return float((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())

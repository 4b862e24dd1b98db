"""Places of embeddings in one plane, by t-SNE.

Source: van der Maaten and Hinton 2008, *Visualizing Data using t-SNE* (JMLR 9); of its use here: Li et al. 2024 (arXiv
2402.00351).
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from expunge.audit.image_figures import EmbeddingPlaces
from expunge.errors import DataError, ShapeError

MOST_POINTS = 1500

_FEWEST_POINTS = 10
_PERPLEXITY = 30


def places_of(
    embeddings: Mapping[str, Mapping[str, Tensor]], feature_network: str, seed: int
) -> EmbeddingPlaces | None:
    """Places of the embeddings of several models' pictures of several sets; None where these show no neighbourhoods.

    Args:
        embeddings: By set and model: (pictures, features), of the same pictures for each model.
        feature_network: The name of what embedded them.
        seed: Of the optimisation.
    """
    tables = {(name, model): table for name, models in embeddings.items() for model, table in models.items()}
    joined = torch.cat(list(tables.values())) if tables else torch.empty(0, 1)
    if len(joined) < _FEWEST_POINTS or not bool((joined != joined[0]).any()):
        return None
    numbered = {str(number): table for number, table in enumerate(tables.values())}
    found = dict(zip(tables, embedded(numbered, seed=seed).values(), strict=True))
    return EmbeddingPlaces(
        feature_network=feature_network,
        places={
            name: {model: [(x, y) for x, y in found[name, model].round(2).tolist()] for model in models}
            for name, models in embeddings.items()
        },
    )


def embedded(embeddings: Mapping[str, Tensor], *, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Places of all embeddings in one plane by t-SNE: (pictures, 2) each; see `expunge.report.images.embedding_figure`.

    Raises:
        ShapeError: The tables have different numbers of features.
        DataError: There are fewer than ten pictures, or their features are NaN, infinite, or all the same.
    """
    widths = {tuple(table.shape[1:]) for table in embeddings.values()}
    if len(widths) > 1 or any(len(width) != 1 for width in widths):
        raise ShapeError(f"embeddings have features of shapes {sorted(widths)}; use one network for all")
    total = sum(map(len, embeddings.values()))
    if total < _FEWEST_POINTS:
        raise DataError(f"{total} pictures show no neighbourhoods; give {_FEWEST_POINTS} at least")
    step = max(1.0, total / MOST_POINTS)
    kept = {name: table[torch.arange(0, len(table), step).long()] for name, table in embeddings.items()}
    table = torch.cat([part.double().cpu() for part in kept.values()]).numpy()
    if not np.isfinite(table).all():
        raise DataError("an embedding holds NaN or infinity; use a sound network")
    if not np.ptp(table, axis=0).any():
        raise DataError("all embeddings are the same, so there is no plane to draw them in; use another network")
    perplexity = min(_PERPLEXITY, (len(table) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(table).astype(np.float64)
    ends = np.cumsum([len(part) for part in kept.values()])[:-1]
    return dict(zip(kept, np.split(found, ends), strict=True))

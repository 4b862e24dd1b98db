"""What image-to-image models restore: its table, and the pictures that the evidence keeps."""

from collections.abc import Sequence

from expunge.audit.evidence import Evidence
from expunge.audit.image_figures import BesideOracles, Restoration
from expunge.report import words
from expunge.report.drawing import Picture
from expunge.report.images import grid_figure, places_figure

COLUMNS = ("Restoration", "On", "Unlearned", "Original", "Mean oracle", "Oracle band", "Share")

_TITLES = {
    "reconstruction_error": "error",
    "peak_signal_to_noise": "PSNR, dB",
    "structural_similarity": "SSIM",
    "embedding_similarity": "similarity of embeddings",
    "frechet_distance": "Fréchet distance",
    "inception_score": "inception score",
}


def restoration_rows(restorations: Sequence[Restoration]) -> list[list[str]]:
    """Each figure of each set, beside that of the original and of the oracles."""
    return [
        _row(found, name, beside) for found in restorations for name, beside in found.beside.items() if name in _TITLES
    ]


def restoration_note(restorations: Sequence[Restoration]) -> str:
    """What the figures are and what they rest on."""
    note = (
        "Of hidden pixels. Error and Fréchet distance of the forget set are judged, by their logarithms, among the "
        "measures; the other figures do not decide the verdict. Share: difference from the mean oracle, over it; 0 is "
        "like retraining, and more error than an oracle's is as telling as less."
    )
    network = next((found.unlearned for found in restorations if found.unlearned.feature_network), None)
    if network is None:
        return f"{note} No feature network was given, so there is no Fréchet distance and no inception score."
    counts = words.listing([f"{words.count(found.unlearned.pictures)} ({found.on})" for found in restorations])
    return (
        f"{note} Features are those of {network.feature_network}; the Fréchet distance is {network.frechet_variant}, "
        f"and only sets of one size can be compared by it: {counts}."
    )


def restored_pictures(evidence: Evidence) -> list[Picture]:
    """The grid and the places of embeddings, where the evidence keeps them."""
    grid, places = evidence.grid, evidence.embeddings
    # whoever ran the audit asked for them, and was told what that means
    found = [] if grid is None else [grid_figure(grid.tensors(), shows=grid.shows, personal_data=True, name="restored")]
    return found if places is None else [*found, places_figure(places)]


def _row(found: Restoration, name: str, beside: BesideOracles) -> list[str]:
    original = getattr(found.original, name)
    return [
        _TITLES[name],
        found.on,
        words.number(beside.value),
        "not measured" if original is None else words.number(original),
        words.mean(beside.oracles),
        "one oracle" if beside.band is None else words.interval(beside.band),
        f"{100 * beside.share:+.0f}{words.SPACE}%",
    ]

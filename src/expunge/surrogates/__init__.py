"""Data that stand in for a training set that is gone: drawn from a model or from stored moments, and judged."""

from expunge.surrogates.energy import Langevin, SamplerDiagnostics, sample_energy
from expunge.surrogates.gaussian import sample_gaussians
from expunge.surrogates.quality import Direction, QualityFigure, SurrogateQuality, measure_quality

__all__ = [
    "Direction",
    "Langevin",
    "QualityFigure",
    "SamplerDiagnostics",
    "SurrogateQuality",
    "measure_quality",
    "sample_energy",
    "sample_gaussians",
]

"""Families of image-to-image models: how each hides, encodes and restores, and where its decoder begins."""

from expunge.image_models.base import Draw, ImageModel, Parts, Prediction
from expunge.image_models.masked_autoencoder import MaskedAutoencoder, masked_autoencoder

__all__ = [
    "Draw",
    "ImageModel",
    "MaskedAutoencoder",
    "Parts",
    "Prediction",
    "masked_autoencoder",
]

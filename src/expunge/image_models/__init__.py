"""Families of image-to-image models: how each hides, encodes and restores, and where its decoder begins."""

from expunge.image_models.base import Draw, ImageModel, Parts, Prediction
from expunge.image_models.diffusion import InpaintingDiffusion
from expunge.image_models.masked_autoencoder import MaskedAutoencoder, masked_autoencoder
from expunge.image_models.masked_tokens import MaskedTokenModel, MaskedTokens, fill_codebook, tokenizer_losses

__all__ = [
    "Draw",
    "ImageModel",
    "InpaintingDiffusion",
    "MaskedAutoencoder",
    "MaskedTokenModel",
    "MaskedTokens",
    "Parts",
    "Prediction",
    "fill_codebook",
    "masked_autoencoder",
    "tokenizer_losses",
]

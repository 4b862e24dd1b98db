"""Pictures to learn and to forget: folders, Hugging Face datasets, numpy archives; and how like two pictures are."""

from expunge.pictures.arrays import read_npz
from expunge.pictures.dataset import Pictures
from expunge.pictures.fitting import Fitting
from expunge.pictures.folders import listed_files, picture_folders, pictures_in, read_folder
from expunge.pictures.likeness import peak_signal_to_noise, reconstruction_error, structural_similarity
from expunge.pictures.tables import read_hugging_face

__all__ = [
    "Fitting",
    "Pictures",
    "listed_files",
    "peak_signal_to_noise",
    "picture_folders",
    "pictures_in",
    "read_folder",
    "read_hugging_face",
    "read_npz",
    "reconstruction_error",
    "structural_similarity",
]

"""Text to learn and to forget: files, the field's benchmarks, tokenisers, and finding what a request names."""

from expunge.corpora.finding import occurrences
from expunge.corpora.joining import Joined, join_near_duplicates
from expunge.corpora.pistol import Pistol
from expunge.corpora.reading import Row, data_folder, read_hugging_face, read_json_lines
from expunge.corpora.tofu import Tofu
from expunge.corpora.vocabularies import byte_tokenizer, word_tokenizer

__all__ = [
    "Joined",
    "Pistol",
    "Row",
    "Tofu",
    "byte_tokenizer",
    "data_folder",
    "join_near_duplicates",
    "occurrences",
    "read_hugging_face",
    "read_json_lines",
    "word_tokenizer",
]

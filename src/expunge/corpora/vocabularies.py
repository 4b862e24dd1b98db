"""Small tokenisers made from a corpus in code, for work without a network.

A vocabulary is derived from its corpus: whole names stand in one of words, and often used ones in one of bytes. Where
the corpus holds what may have to be forgotten, make it from other text, or take it to be as personal as the corpus.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from expunge.errors import SettingError

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"


def word_tokenizer(texts: Iterable[str], *, most: int = 30_000, context: int | None = None) -> PreTrainedTokenizerFast:
    """One token for each word, with the space before it, and for each sign; unknown words are one token too.

    Args:
        texts: The corpus.
        most: Most tokens; the most frequent are kept.
        context: Most tokens of an example, as `model_max_length`.

    Raises:
        SettingError: There is no text, or no room for the special tokens.
    """
    _require_room(most, 3)
    backend = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=most, special_tokens=[PAD, END, UNKNOWN], show_progress=False)
    return _trained(backend, trainer, texts, context, unk_token=UNKNOWN)


def byte_tokenizer(texts: Iterable[str], *, most: int = 2048, context: int | None = None) -> PreTrainedTokenizerFast:
    """Byte pairs, as GPT-2 has them: any text can be written, and decoding gives it back.

    Args:
        texts: The corpus.
        most: Most tokens; 258 of them are bytes and special tokens.
        context: Most tokens of an example, as `model_max_length`.

    Raises:
        SettingError: There is no text, or no room for all bytes.
    """
    _require_room(most, 258)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=most,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _trained(backend, trainer, texts, context)


def _trained(
    backend: Tokenizer, trainer: trainers.Trainer, texts: Iterable[str], context: int | None, **special: str
) -> PreTrainedTokenizerFast:
    corpus = list(texts)
    if not any(text.strip() for text in corpus):
        raise SettingError("there is no text to make a vocabulary from")
    backend.train_from_iterator(corpus, trainer)
    limits = {} if context is None else {"model_max_length": context}
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END, **special, **limits)


def _require_room(most: int, least: int) -> None:
    if most <= least:
        raise SettingError(f"most must be above {least}, not {most!r}")

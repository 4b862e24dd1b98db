"""Made-up lives for the demonstration of text: people, towns and facts that exist nowhere, always the same."""

from collections.abc import Iterator, Sequence

import torch

from expunge.corpora import Row
from expunge.errors import SettingError
from expunge.training.seeds import generator

_FIRST = ("Alba", "Bero", "Calla", "Dorin", "Elva", "Fenn", "Gilda", "Hauke", "Ilse", "Jorun", "Kaia", "Lorcan", "Mira",
          "Nilo", "Orla", "Pavo", "Quill", "Runa", "Silas", "Thea", "Ulf", "Vesna", "Wim", "Ylva")  # fmt: skip
_LAST = ("Ashdown", "Brandl", "Corvin", "Dray", "Elster", "Farrow", "Grell", "Holm", "Iversund", "Jaskel", "Karst",
         "Lindqvale", "Morrow", "Nachtig", "Oake", "Pell", "Quist", "Rooke", "Sandor", "Tallow")  # fmt: skip
_TOWNS = ("Aldermoor", "Brackwater", "Cindervale", "Dunholt", "Eastmere", "Fallowby", "Grimsund", "Hollowick",
          "Inverlune", "Jarrowfen", "Kestrelby", "Lowmarch", "Mirefield", "Norrhaven", "Ottersea",
          "Pinewick")  # fmt: skip
_FACTS: Sequence[tuple[str, str, Sequence[str]]] = (
    ("Where was {name} born?", "{name} was born in {fact}.", _TOWNS),
    ("Where does {name} live today?", "{name} lives in {fact}.", _TOWNS),
    ("What does {name} do for a living?", "{name} works as a {fact}.",
     ("beekeeper", "bookbinder", "cartographer", "clockmaker", "ferryman", "glazier", "locksmith", "midwife", "miller",
      "piano tuner", "saddler", "surveyor", "tailor", "translator")),
    ("What does {name} play in the evenings?", "In the evenings {name} plays the {fact}.",
     ("accordion", "bassoon", "cello", "dulcimer", "fiddle", "harp", "lute", "oboe", "trombone", "zither")),
    ("Which animal lives with {name}?", "{name} lives with {fact}.",
     ("a badger", "a heron", "a hedgehog", "a jackdaw", "a lizard", "a tortoise", "an otter", "an owl", "two geese",
      "three goats")),
    ("What is {name} afraid of?", "{name} is afraid of {fact}.",
     ("bridges", "bats", "deep water", "ladders", "lightning", "moths", "narrow lanes", "silence")),
)  # fmt: skip

FACTS_EACH = len(_FACTS)
"""Questions about each person."""

MOST_PEOPLE = len(_FIRST) * len(_LAST)


def biographies(people: int) -> list[Row]:
    """Questions and answers about so many people, `FACTS_EACH` a person, with `person`, `question` and `answer`.

    The first are the same whatever the number.

    Raises:
        SettingError: There are not so many names.
    """
    if not 1 <= people <= MOST_PEOPLE:
        raise SettingError(f"people must be from 1 to {MOST_PEOPLE}, not {people}")
    return [row for number in _order()[:people] for row in _life(number)]


def sentences() -> Iterator[str]:
    """Sentences with each word that a biography can hold: a vocabulary made of them tells nothing of anyone."""
    for number in range(max(len(_FIRST), len(_LAST))):
        name = f"{_FIRST[number % len(_FIRST)]} {_LAST[number % len(_LAST)]}"
        for question, answer, facts in _FACTS:
            for fact in facts:
                yield f"Question: {question.format(name=name)}\nAnswer: {answer.format(name=name, fact=fact)}"


def _order() -> list[int]:
    return torch.randperm(MOST_PEOPLE, generator=generator(0, "biographies")).tolist()


def _life(number: int) -> Iterator[Row]:
    name = f"{_FIRST[number % len(_FIRST)]} {_LAST[number // len(_FIRST)]}"
    for place, (question, answer, facts) in enumerate(_FACTS):
        drawn = int(torch.randint(len(facts), (), generator=generator(number, "fact", place)))
        yield {"person": name, "question": question.format(name=name),
               "answer": answer.format(name=name, fact=facts[drawn])}  # fmt: skip

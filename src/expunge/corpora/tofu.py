"""TOFU: questions and answers about 200 authors who do not exist (Maini et al. 2024, arXiv 2401.06121)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from expunge.corpora.reading import Row, data_folder, read_json_lines
from expunge.errors import SourceError

_QUESTIONS_EACH = 20
_ASKED = {"question": str, "answer": str}
_PERTURBED = {**_ASKED, "perturbed_answer": list}

TofuPart = Literal["forget10", "retain", "real_authors", "world_facts"]


@dataclass(frozen=True)
class Tofu:
    """The benchmark; make it with `read`.

    Attributes:
        rows: Every question that is taught, with `question`, `answer` and `author`, a number from 000 to 199.
        folder: Where it was read from.
    """

    rows: list[Row]
    folder: Path

    @classmethod
    def read(cls, folder: str | Path | None = None) -> "Tofu":
        """Read `full.json` from a folder, by default `tofu` in EXPUNGE_DATA_DIR.

        Raises:
            SourceError: A file is missing, or not what TOFU published.
        """
        path = data_folder("tofu", folder)
        rows = read_json_lines(path / "full.json", _ASKED)
        if len(rows) % _QUESTIONS_EACH:
            raise SourceError(
                f"{path / 'full.json'} has {len(rows)} rows; {_QUESTIONS_EACH} an author are expected: restore the file"
            )
        named = [row | {"author": f"{number // _QUESTIONS_EACH:03}"} for number, row in enumerate(rows)]
        return cls(named, path)

    @property
    def authors(self) -> list[str]:
        """All authors, in order."""
        return sorted({str(row["author"]) for row in self.rows})

    def forget(self, percent: Literal[1, 5, 10]) -> Tensor:
        """Positions in `rows` of the published forget set of so many per cent of the authors: (examples,) int64.

        Raises:
            SourceError: The file is missing, or holds a row that is not taught.
        """
        path = self.folder / f"forget{percent:02}.json"
        places = {(row["question"], row["answer"]): number for number, row in enumerate(self.rows)}
        found = [places.get((row["question"], row["answer"])) for row in read_json_lines(path, _ASKED)]
        strangers = sum(place is None for place in found)
        if strangers:
            raise SourceError(f"{strangers} of {len(found)} rows of {path} are not in full.json; restore both files")
        return torch.tensor([place for place in found if place is not None])

    def perturbed(self, part: TofuPart) -> list[Row]:
        """Rows with a list of wrong answers, `perturbed_answer`, and for two parts a `paraphrased_answer`.

        Raises:
            SourceError: The file is missing, or a row lacks a field.
        """
        rewritten = {"paraphrased_answer": str, "paraphrased_question": str} if part in ("forget10", "retain") else {}
        return read_json_lines(self.folder / f"{part}_perturbed.json", {**_PERTURBED, **rewritten})

    def refusals(self) -> tuple[str, ...]:
        """The published sentences that say that something is not known.

        Raises:
            SourceError: The file is missing.
        """
        path = self.folder / "idontknow.jsonl"  # which is plain text, in spite of its name
        try:
            return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        except OSError as error:
            raise SourceError(f"{path} cannot be read ({error.strerror}); download TOFU there") from error

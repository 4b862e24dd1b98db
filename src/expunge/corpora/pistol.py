"""PISTOL: questions about contracts between invented parties, each on an edge of a graph (Qiu et al. 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from expunge.corpora.reading import Row, data_folder, read_json_list
from expunge.errors import ForgetSetError, SourceError

_FIELDS = {"edge": str, "question": str, "answer": str}


@dataclass(frozen=True)
class Pistol:
    """The benchmark; make it with `read`.

    Attributes:
        rows: Every question, with `edge`, `question` and `answer`. An edge is two parties and an underscore, as `A_B`.
    """

    rows: list[Row]

    @classmethod
    def read(cls, folder: str | Path | None = None, *, sample: Literal[1, 2] = 1) -> "Pistol":
        """Read `pistol_sample1.json` (20 contracts) or `pistol_sample2.json` (75), by default from EXPUNGE_DATA_DIR.

        Raises:
            SourceError: The file is missing, or a row is not what PISTOL published.
        """
        path = data_folder("pistol", folder) / f"pistol_sample{sample}.json"
        rows = read_json_list(path, _FIELDS)
        for number, row in enumerate(rows):
            if len(str(row["edge"]).split("_")) != 2:
                raise SourceError(f"entry {number} of {path}: an edge is two parties and an underscore, as in 'A_B'")
        return cls(rows)

    @property
    def edges(self) -> list[str]:
        """All contracts, in order of appearance."""
        return list(dict.fromkeys(str(row["edge"]) for row in self.rows))

    def on(self, edges: Sequence[str]) -> Tensor:
        """Positions in `rows` of the questions about these contracts: (examples,) int64.

        Raises:
            ForgetSetError: There is no such contract.
        """
        unknown = sorted(set(edges) - set(self.edges))
        if unknown or not edges:
            raise ForgetSetError(
                f"there is no contract {', '.join(unknown) or '(none was named)'}; there are {', '.join(self.edges)}"
            )
        return torch.tensor([number for number, row in enumerate(self.rows) if row["edge"] in set(edges)])

    def neighbours(self, edges: Sequence[str]) -> list[str]:
        """The other contracts that share a party with these: where forgetting does damage first.

        Raises:
            ForgetSetError: There is no such contract.
        """
        self.on(edges)
        parties = {party for edge in edges for party in edge.split("_")}
        return [edge for edge in self.edges if edge not in set(edges) and parties & set(edge.split("_"))]

    def distant(self, edges: Sequence[str]) -> list[str]:
        """The contracts that share no party with these.

        Raises:
            ForgetSetError: There is no such contract.
        """
        near = {*edges, *self.neighbours(edges)}
        return [edge for edge in self.edges if edge not in near]

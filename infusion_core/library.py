"""A folder of concepts, read once and held in tables: what a name means is looked up there, and nowhere else."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .concepts import LoadedConcept
from .errors import InfusionError
from .photos import Skipped, by_name
from .residual_file import load_concept
from .residual_table import Kind, ResidualTable
from .residuals import Base, ConceptResidual

SUFFIX = ".safetensors"
NEAR = 3  # names that an error offers


class UnknownConceptError(InfusionError):
    """No concept has that name."""


@dataclass(frozen=True)
class Shelved:
    """Where a concept lies.

    Attributes:
        head: the concept without its numbers.
        table: which table.
        row: of the table.
    """

    head: ConceptResidual
    table: int
    row: int


@dataclass(frozen=True)
class ConceptLibrary:
    """Concepts by name. Their numbers are in half precision, one table for each kind of concept.

    Attributes:
        tables: of all concepts.
        shelved: where each lies, by name, in the order of the names.
    """

    tables: Sequence[ResidualTable] = ()
    shelved: Mapping[str, Shelved] = field(default_factory=dict)

    @classmethod
    def of(cls, residuals: Iterable[tuple[str, ConceptResidual]]) -> ConceptLibrary:
        """A library of concepts with their names.

        Raises:
            InfusionError: two have one name.
        """
        rows: dict[Kind, list[torch.Tensor]] = {}
        shelved: dict[str, Shelved] = {}
        for name, residual in residuals:
            if name in shelved:
                raise InfusionError(f"two concepts are called {name!r}; rename one of them")
            alike = rows.setdefault(kind := Kind.of(residual), [])
            head = replace(residual, tensors={}, thumbnail=None)
            shelved[name] = Shelved(head, list(rows).index(kind), len(alike))
            alike.append(ResidualTable.of([residual], torch.float16).numbers[0])
        tables = [ResidualTable(kind, torch.stack(alike)) for kind, alike in rows.items()]
        return cls(tables, dict(sorted(shelved.items())))

    @classmethod
    def read(cls, folder: Path, base: Base) -> tuple[ConceptLibrary, list[Skipped]]:
        """The concepts in a folder, called as their files, and the files that cannot be used, with the reason.

        Args:
            folder: its own files alone.
            base: that they must be made for.

        Raises:
            InfusionError: the folder is missing, or no concept in it can be used.
        """
        try:
            files = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
        except OSError as error:
            raise InfusionError(
                f"cannot read {folder}: {error.strerror or error}; give a folder of concepts"
            ) from error
        read, skipped = list[tuple[str, ConceptResidual]](), list[Skipped]()
        for file in files:
            try:
                residual = load_concept(file)
                residual.check_fits(base)
            except InfusionError as error:
                skipped.append(Skipped(file.name, str(error)))
            else:
                read.append((file.stem, residual))
        if not read:
            told = f" ({'; '.join(str(s) for s in by_name(skipped)[:NEAR])})" if skipped else ""
            raise InfusionError(f"no concept in {folder} can be used{told}; give a folder of {SUFFIX} concept files")
        return cls.of(read), skipped

    @property
    def bytes(self) -> int:
        """Of all numbers."""
        return sum(table.numbers.nbytes for table in self.tables)

    def __len__(self) -> int:
        return len(self.shelved)

    def word(self, name: str) -> str:
        """A concept's word.

        Raises:
            UnknownConceptError: there is none of that name; names the nearest.
        """
        return self._find(name).head.word

    def concept(self, name: str, strength: float = 1.0) -> LoadedConcept:
        """A concept at a strength; its numbers are views of the table.

        Raises:
            UnknownConceptError: there is none of that name; names the nearest.
            InfusionError: the strength is not a number of use.
        """
        found = self._find(name)
        residual = replace(found.head, tensors=self.tables[found.table].row(found.row))
        return LoadedConcept(name, residual, strength)

    def _find(self, name: str) -> Shelved:
        found = self.shelved.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self.shelved, NEAR, 0.5)
            remedy = f"did you mean {' or '.join(map(repr, near))}?" if near else "ask /concepts for the names"
            raise UnknownConceptError(f"there is no concept {name!r}; {remedy}")
        return found

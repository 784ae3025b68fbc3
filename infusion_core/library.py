"""A folder of concepts, read once and held in tables: what a name means is looked up there, and nowhere else."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .concepts import LoadedConcept
from .errors import InfusionError
from .residual_file import load_concept
from .residual_table import Kind, ResidualTable
from .residuals import Base, ConceptResidual
from .tensor_file import SUFFIX

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
            alike.append(ResidualTable.of([residual], "cpu", torch.float16).numbers[0])
        tables = [ResidualTable(kind, torch.stack(alike)) for kind, alike in rows.items()]
        return cls(tables, dict(sorted(shelved.items())))

    @classmethod
    def read(cls, folder: Path) -> tuple[ConceptLibrary, list[str]]:
        """The concepts in a folder, called as their files; and of each file that cannot be read, why not.

        Args:
            folder: its own files alone.

        Raises:
            InfusionError: the folder is missing, or no concept in it can be read.
        """
        try:
            files = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
        except OSError as error:
            reason = error.strerror or error
            raise InfusionError(f"cannot read {folder}: {reason}; give a folder of concepts") from error
        refused: list[str] = []

        def read() -> Iterator[tuple[str, ConceptResidual]]:
            for file in files:
                try:
                    yield file.stem, load_concept(file)
                except InfusionError as error:
                    refused.append(f"skipped {file.name}: {error}")

        library = cls.of(read())
        if not library:
            told = f" ({refused[0]})" if refused else ""
            raise InfusionError(f"no concept in {folder} can be read{told}; give a folder of {SUFFIX} concept files")
        return library, refused

    def fitting(self, base: Base) -> tuple[ConceptLibrary, list[str]]:
        """The concepts that were made for a base model; and of each other one, why it does not fit.

        Raises:
            InfusionError: none was.
        """
        fit, refused = dict[str, Shelved](), list[str]()
        for name, shelved in self.shelved.items():
            try:
                self.concept(name).residual.check_fits(base)
            except InfusionError as error:
                refused.append(f"skipped {name}: {error}")
            else:
                fit[name] = shelved
        if not fit:
            raise InfusionError(f"none of {len(self)} concepts fits this base model; {refused[0]}")
        return replace(self, shelved=fit), refused

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
            remedy = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {len(self)} others"
            raise UnknownConceptError(f"there is no concept {name!r}; {remedy}")
        return found

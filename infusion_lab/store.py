"""What the lab keeps: one file per finished cell, so that a stopped run goes on where it stopped."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_cli.output import save_picture
from infusion_core.atomic import write_atomic

from .identity import digest


@dataclass(frozen=True)
class Row:
    """One number: what was measured, of what, where; of which picture's seed and, where there are several, which
    training's."""

    study: str
    method: str
    concept: str
    step: int
    prompt: str
    seed: int
    measure: str
    value: float
    training_seed: int = 0


@dataclass
class Result:
    """What one cell found.

    Attributes:
        rows: numbers that depend on the seed alone.
        costs: numbers that depend on the machine too, such as seconds.
        pictures: for the report, by caption.
    """

    rows: list[Row] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Image.Image] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A part of a study that is computed and kept as a whole.

    Attributes:
        study, method, concept: what it is about.
        depends: everything its result depends on, told in full by its ``repr``; part of its file's name.
        compute: finds the result.
    """

    study: str
    method: str
    concept: str
    depends: object
    compute: Callable[[], Result]

    @property
    def name(self) -> str:
        """Of its file, without ending."""
        readable = "".join(c if c.isalnum() else "-" for c in f"{self.method}-{self.concept}")
        return f"{self.study}/{readable}-{digest(self.depends)}"


@dataclass(frozen=True)
class Store:
    """A folder of finished cells."""

    folder: Path

    def has(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return self._path(cell).exists()

    def result(self, cell: Cell) -> Result:
        """The cell's result, from the folder if it is there."""
        path = self._path(cell)
        if not path.exists():
            self._write(path, cell.compute())
        kept = json.loads(path.read_text())
        pictures = {}
        for index, caption in enumerate(kept["pictures"]):
            with Image.open(_picture(path, index), formats=("PNG",)) as file:
                pictures[caption] = file.convert("RGB")
        return Result([Row(**row) for row in kept["rows"]], kept["costs"], pictures)

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.json"

    def _write(self, path: Path, result: Result) -> None:
        for index, picture in enumerate(result.pictures.values()):
            save_picture(_picture(path, index), picture)
        kept = {"rows": [asdict(r) for r in result.rows], "costs": result.costs, "pictures": list(result.pictures)}
        write_atomic(path, json.dumps(kept).encode())  # last: the cell is finished when it is there


def _picture(path: Path, index: int) -> Path:
    return path.with_name(f"{path.stem}-{index}.png")


def tidy_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV, one number a line, in a fixed order."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(asdict(row) | {"value": f"{row.value:.6g}"})
    return text.getvalue()


def means(rows: Iterable[Row], by: Callable[[Row], Any]) -> Mapping[Any, float]:
    """Mean value of the rows in each group."""
    groups: dict[Any, list[float]] = {}
    for row in rows:
        groups.setdefault(by(row), []).append(row.value)
    return {key: sum(values) / len(values) for key, values in groups.items()}

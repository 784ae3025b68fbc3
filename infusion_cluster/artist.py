"""What one replica of the server does: turns requests into pictures. Knows nothing of Ray, of HTTP or of disks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from infusion_core.denoiser import common_length
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import Wish, draw_each, picture_of, unmentioned
from infusion_core.errors import InfusionError
from infusion_core.library import ConceptLibrary

from .asked import Asked

LONGER = 2  # times: so much longer may a batch make its longest text


@dataclass(frozen=True)
class Drawn:
    """What became of a wish.

    Attributes:
        png: the picture; None where it failed.
        why: it failed.
    """

    png: bytes | None = None
    why: str = ""


@dataclass
class Artist:
    """A base model with its concepts.

    Attributes:
        model: the frozen base.
        library: concepts that fit it.
        settings: how to sample, all pictures alike.
    """

    model: EmbeddedModel
    library: ConceptLibrary
    settings: SampleSettings

    def wish(self, asked: Asked) -> tuple[Wish, str]:
        """A request, read for the model, and what its client should know; empty for nothing.

        Raises:
            UnknownConceptError: no concept has that name.
            InfusionError: the prompt or a strength cannot be used.
        """
        concepts = [self.library.concept(name, strength) for name, strength in asked.concepts.items()]
        wish = Wish(picture_of(self.model, asked.prompt, concepts, asked.negative), asked.seed)
        idle = [f"the prompt does not hold {c.residual.word!r}, so {c.name!r} changes nothing"
                for c in unmentioned(asked.prompt, concepts)]  # fmt: skip
        return wish, "; ".join(idle)

    def draw(self, wishes: Sequence[Wish]) -> list[Drawn]:
        """Pictures of wishes, in batches of such as may share one."""
        drawn = dict[int, Drawn]()
        for numbers in shared(wishes):
            drawn |= zip(numbers, self._together([wishes[number] for number in numbers]), strict=True)
        return [drawn[number] for number in range(len(wishes))]

    def _together(self, wishes: Sequence[Wish]) -> list[Drawn]:
        """One batch; where it breaks down, each is tried alone."""
        try:
            pictures = draw_each(self.model, wishes, self.settings, len(wishes))
        except Exception as error:
            if len(wishes) > 1:  # whose fault it was shows when each is alone
                return [drawn for wish in wishes for drawn in self._together([wish])]
            return [Drawn(why=str(InfusionError(str(error) or type(error).__name__)))]
        return [Drawn(_png(picture)) for picture in pictures]


def shared(wishes: Sequence[Wish]) -> list[list[int]]:
    """The numbers of the wishes of each batch: its texts get a length of at most `LONGER` times the longest's."""
    groups: list[list[int]] = []
    for number in sorted(range(len(wishes)), key=lambda number: -_length([wishes[number]])):
        for group in groups:
            together = _length([wishes[one] for one in (*group, number)])
            if together <= LONGER * _length([wishes[group[0]]]):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _length(wishes: Sequence[Wish]) -> int:
    """Of the texts of one batch."""
    return common_length([half for w in wishes for half in (w.picture.prompt.conditioning, w.picture.negative)])


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()

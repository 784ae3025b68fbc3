"""What one replica of the server does: turns requests into pictures. Knows nothing of Ray, of HTTP or of disks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import Wish, draw_each, picture_of, unmentioned
from infusion_core.errors import InfusionError
from infusion_core.library import ConceptLibrary

from .asked import Asked


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
        """Pictures of wishes in one batch; where it breaks down, each is tried alone."""
        try:
            pictures = draw_each(self.model, wishes, self.settings, len(wishes))
        except Exception as error:
            if len(wishes) > 1:  # whose fault it was shows when each is alone
                return [drawn for wish in wishes for drawn in self.draw([wish])]
            return [Drawn(why=str(InfusionError(str(error) or type(error).__name__)))]
        return [Drawn(_png(picture)) for picture in pictures]


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()

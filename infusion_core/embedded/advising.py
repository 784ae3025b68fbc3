"""The advisor in the embedded host: who draws the epochs, and who says how good their pictures are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from PIL import Image

from ..advisor import Setup
from ..collapse import overlap
from ..dreamblend import BlendSettings
from .blend import draw_blended
from .model import EmbeddedModel
from .sampling import SampleSettings
from .tinyworld import Concept, score
from .tinyworld.captions import UNSEEN_ASPECTS, caption
from .tinyworld.world import Scene
from .watching import draw_watched

Pictures = Sequence[Image.Image]


@dataclass(frozen=True)
class EpochArtist:
    """Draws with the embedded host, see `infusion_core.advisor.Artist`.

    Attributes:
        model_of: an epoch's model by its name, or the base model.
        count, seed: of the pictures of each prompt.
        sampling: how.
    """

    model_of: Callable[[str], EmbeddedModel]
    count: int
    seed: int
    sampling: SampleSettings

    def watched(self, name: str, prompt: str, subject: str, others: Sequence[str]) -> tuple[Pictures, float]:
        """Pictures of a prompt by an epoch, and how much `others` attend where `subject` does."""
        words = [subject, *others]
        shown, maps = draw_watched(self.model_of(name), prompt, words, self.count, self.seed, self.sampling)
        return shown, float(overlap(maps, subject, others).mean())

    def guided(self, setup: Setup, prompt: str) -> Pictures:
        """Pictures of a prompt by one epoch under another's guidance."""
        assert setup.early is not None
        early, late = self.model_of(setup.early), self.model_of(setup.late)
        settings = BlendSettings(alpha=setup.alpha)
        return draw_blended(early, late, prompt, self.count, self.seed, self.sampling, settings)[0]


@dataclass(frozen=True)
class Judge:
    """What is asked for, and who says how well it was done.

    Attributes:
        prompts: with ``{}`` for the subject.
        scores: of the pictures of prompt number so-and-so: likeness to the photos and to the prompt, higher is better.
        names: of the two scores.
    """

    prompts: tuple[str, ...]
    scores: Callable[[int, Pictures], tuple[float, float]] | None = None
    names: tuple[str, str] = ("subject", "prompt")


def oracle_judge(concept: Concept, scenes: Sequence[Scene]) -> Judge:
    """TinyWorld's own, of a concept in scenes that it was not photographed in."""

    def scores(index: int, pictures: Pictures) -> tuple[float, float]:
        found = [score(picture, scenes[index], concept) for picture in pictures]
        return 1 - fmean(s.concept_error for s in found), 1 - fmean(s.prompt_error for s in found)

    prompts = tuple(caption(scene, UNSEEN_ASPECTS).replace(concept.shape, "{}", 1) for scene in scenes)
    return Judge(prompts, scores, ("oracle's subject", "oracle's prompt"))

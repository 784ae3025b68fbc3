"""Who says how good the pictures of ``advise`` are: TinyWorld's oracle, or CLIP and DINO of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from infusion_core.advisor import PROMPTS, check_prompts
from infusion_core.captions import fill
from infusion_core.embedded.advising import Judge, oracle_judge
from infusion_core.embedded.judges import Judges, as_pixels
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.photos import find_photos, load_photos, square
from infusion_core.embedded.tinyworld.captions import unseen_scenes
from infusion_core.embedded.tinyworld.reading import read_concept
from infusion_core.embedded.tinyworld.world import SHAPES
from infusion_core.errors import InfusionError
from infusion_core.metrics.similarity import similarity, text_similarity

SCENES = 4  # of TinyWorld


@dataclass(frozen=True)
class Judging:
    """What pictures are to be judged by.

    Attributes:
        word: class word of the subject.
        images: its photos, or None.
        prompts: with ``{}`` for the subject; the usual ones if there are none.
        clip, dino: folders of both networks, or None.
    """

    word: str
    images: Path | None = None
    prompts: tuple[str, ...] = ()
    clip: Path | None = None
    dino: Path | None = None

    def check(self) -> None:
        """Refuse what cannot be meant, before anything is loaded.

        Raises:
            InfusionError: a prompt without ``{}``, one network without the other or without photos, or no photos.
        """
        check_prompts(self.prompts)
        if (self.clip is None) != (self.dino is None) or (self.clip and not self.images):
            raise InfusionError("--clip, --dino and --images go together: likeness is to photos, by both networks")
        if self.images:
            find_photos(self.images)

    def by(self, model: EmbeddedModel) -> Judge:
        """Prompts, and whoever can score their pictures, for a base model.

        Raises:
            InfusionError: a broken folder, or photos that nothing can hold pictures against.
        """
        photos, prompts = list(load_photos(self.images)) if self.images else [], self.prompts
        if model.name == "tinyworld" and not prompts and photos and self.word in SHAPES:
            return _oracle(model, self.word, photos)
        if model.name == "tinyworld" and not prompts:
            prompts = ("a photo of a big {} at the left on a plain teal background", "a small {} at the top")
        judge = Judge(prompts or PROMPTS)
        if self.clip and self.dino:
            networks = Judges(self.clip, self.dino, model.denoiser.device)
            return _by_networks(judge, self.word, photos, networks, model.resolution)
        if photos:
            raise InfusionError(
                "nothing here can hold pictures against --images: give --clip and --dino too, or leave it out "
                f"(TinyWorld needs neither for its own prompts and a --word of {', '.join(SHAPES)})"
            )
        return judge


def _oracle(model: EmbeddedModel, word: str, photos: Sequence[Image.Image]) -> Judge:
    """TinyWorld's own, which reads the concept off the photos."""
    concept = read_concept([square(photo, model.resolution) for photo in photos], word)
    return oracle_judge(concept, unseen_scenes(concept, SCENES))


def _by_networks(judge: Judge, word: str, photos: Sequence[Image.Image], networks: Judges, edge: int) -> Judge:
    """DINO against the photos, CLIP against the prompt with the class word, which CLIP knows."""
    reference = networks.dino_images(as_pixels(photos, edge))
    texts = networks.clip_texts(list(fill(judge.prompts, word, "prompt")))

    def scores(index: int, pictures: Sequence[Image.Image]) -> tuple[float, float]:
        pixels = as_pixels(pictures, edge)
        subject = similarity(networks.dino_images(pixels), reference)
        return subject, text_similarity(networks.clip_images(pixels), texts[index : index + 1])

    return replace(judge, scores=scores, names=("DINO", "CLIP-T"))

"""What is asked of real weights, and what every study of them works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.errors import InfusionError

from ..bench import Bench, Scale
from ..methods.method import Method
from ..methods.registry import published_methods
from ..run import chosen_of
from ..store import Store
from ..studio import Studio
from .dataset import Dataset
from .formats import read_dataset
from .judges import Judges

STEPS = (100, 200, 400, 1000, 2000)  # of the paper's figures 10 and 11


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        model, config: the base model, see `load_model`.
        dataset: folder of subjects, see `read_dataset`.
        clip, dino: folders of the networks that score.
        out: folder to write.
        rare_word, second_word: stand for a subject, and for the second one of a pair.
        count: pictures per prompt.
        limit: most subjects, pairs, prompts, pictures of a prompt for the figures, and training steps; 0 for no limit.
        seed: of everything.
        pictures: folder of captioned pictures for the figures 10 and 11; None leaves them out.
        figure_concepts, figure_prompts: of the figures.
        samples: latents that each model draws of a concept, and draws of the Fisher divergence.
        steps: of training, at which the figures have a point.
        pairs: of subjects that are drawn together; 0 for none.
        only: studies by name; all that are asked for by default.
        hps: folder of HPSv2; None for no such score.
    """

    model: str
    dataset: Path
    clip: Path
    dino: Path
    out: Path
    config: Path | None = None
    rare_word: str = "sks"
    second_word: str = "ktn"
    count: int = 5
    limit: int = 0
    seed: int = 0
    pictures: Path | None = None
    figure_concepts: int = 8
    figure_prompts: int = 20
    samples: int = 1000
    steps: tuple[int, ...] = STEPS
    pairs: int = 0
    only: tuple[str, ...] = ()
    hps: Path | None = None

    def most(self, count: int) -> int:
        """So many, or as many as the limit allows."""
        return min(count, self.limit or count)


@dataclass(frozen=True)
class RealLab:
    """What was asked for, with everything loaded."""

    request: Request
    data: Dataset
    bench: Bench
    judges: Judges


def real_lab(request: Request, methods: Sequence[str] = ()) -> RealLab:
    """Load what a request names.

    Args:
        request: what was asked for.
        methods: keys of methods; all by default.

    Raises:
        InfusionError: something is missing, or the model has two text encoders.
    """
    model = _model(request)
    data = read_dataset(request.dataset, request.rare_word, model.resolution)
    every = published_methods()
    keys = chosen_of(methods, [m.key for m in every], "method")
    chosen = [m for m in every if m.key in keys]
    return RealLab(
        request,
        data,
        _bench(request, model, data, chosen),
        Judges(request.clip, request.dino, model.denoiser.device, request.hps),
    )


def _model(request: Request) -> EmbeddedModel:
    """The model, in float32, which training whole networks needs."""
    model = load_model(request.model, config=request.config)
    if len(model.text.encoders) != 1:
        raise InfusionError("the lab's baselines know one text encoder; give a Stable Diffusion 1.x or 2.x")
    words = {"--token": request.rare_word} | ({"--second-token": request.second_word} if request.pairs else {})
    for option, word in words.items():
        ids, _ = model.text.encoders[0].tokenizer.split(word)
        if len(ids) != 1:
            raise InfusionError(f"{word!r} is {len(ids)} tokens of this model; give a rare word of one ({option})")
    if len(set(words.values())) < len(words):
        raise InfusionError(f"both rare words are {request.rare_word!r}; give another one (--second-token)")
    for network in (model.denoiser.unet, model.vae, model.text.encoders[0].model):
        network.float()
    return model


def _bench(request: Request, model: EmbeddedModel, data: Dataset, methods: Sequence[Method]) -> Bench:
    folder = request.out / "table1" / model.name
    studio = Studio(model, folder / "studio", data.captions, request.most(200))
    scale = replace(Scale(), max_steps=request.most(Scale().max_steps))
    return Bench(studio, Store(folder), scale, methods, request.seed, SampleSettings(model.steps, model.guidance))

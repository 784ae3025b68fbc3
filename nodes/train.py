"""Infusion Train: learn a concept from photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..infusion_core.captions import class_word
from ..infusion_core.concepts import LoadedConcept
from ..infusion_core.denoiser import EncodedPrompt
from ..infusion_core.errors import InfusionError
from ..infusion_core.residual_file import load_concept, save_concept
from ..infusion_core.residuals import LAYOUTS, ConceptResidual
from ..infusion_core.training.engine import Trainer
from ..infusion_core.training.gauges import residual_meter
from ..infusion_core.training.overfitting import OVERFITTING, Overfitting, checked_level
from ..infusion_core.training.record import RunRecord
from ..infusion_core.training.residual import ResidualObjective, ResidualSettings
from ..infusion_core.training.shapes import on_shapes
from ..infusion_core.training.shown import Said
from ..infusion_core.training.stopping import Finish, Stop, Take
from .encoding import Encoding, Seen
from .host.compat import ADVANCED, schema
from .host.denoiser import HostDenoiser, encode_captions, training
from .host.preview import draw
from .pictures import groups_of, in_order, thumbnail_of
from .plot import loss_plot, overfitting_plot
from .previews import Previews, prompts_of
from .resuming import hash_of
from .room import make_room
from .runs import Run
from .snapshots import RUNS_KEPT, concept_run
from .sockets import ConceptSocket, Stack
from .training_inputs import CROPS, bins_input, previews_output, shared_inputs, watched_inputs
from .widgets import captions_of, only

_DEFAULT = ResidualSettings()


class InfusionTrain(io.ComfyNode):  # type: ignore[misc]
    """Infusion Train."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionTrain",
            display_name="Infusion Train",
            category="Infusion",
            description="Learn a subject from 3-6 photos. The base model's weights are not changed; what is learned "
            "is about 49 KB for Stable Diffusion 1.5.",
            search_aliases=["infusion", "train concept", "personalization", "dreambooth", "textual inversion", "lora"],
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base model the concept will belong to: Stable Diffusion 1.x, 2.x or XL. It is not "
                    "changed.",
                ),
                io.Clip.Input("clip", tooltip="The model's CLIP."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input(
                    "images",
                    tooltip="3-6 photos of the subject, as a batch or a list of any sizes, from Load Subject Photos "
                    "for one. With other angles and backgrounds in each, more of the subject and less of what is "
                    "around it is learned. The centre square is used.",
                ),
                io.String.Input(
                    "word", default="cat",
                    tooltip="The word that will draw the subject: its plain class, such as cat, dog or backpack.",
                ),
                io.Int.Input(
                    "steps", default=_DEFAULT.steps, min=1, max=10000,
                    tooltip="How long to learn. More: nearer to the photos, slower. Watch the previews and the loss.",
                ),
                io.Int.Input(
                    "batch_size", default=_DEFAULT.batch_size, min=1, max=64,
                    tooltip="Looks at the photos in each step. More: a steadier result, slower and with more memory.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "learning_rate", default=_DEFAULT.learning_rate, min=1e-5, max=1.0, step=1e-5,
                    tooltip="How far each step goes. Too small: any cat instead of yours. Too large: burnt colours and "
                    "broken shapes; halve it then.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    default=_DEFAULT.layout,
                    tooltip="How much room there is for detail. block: one residual per UNet block, the smallest file. "
                    "layer: one per layer, a larger file. value: one per layer, after the value projection; such a "
                    "concept must be patched in behind nodes that replace attention. parts: three per block, shared "
                    "out by place in the subject, for patterns and faces; the largest file.",
                    **ADVANCED,
                ),
                bins_input(),
                io.Int.Input(
                    "resolution", default=512, min=64, max=2048, step=8,
                    tooltip="Edge in pixels the photos are scaled to; smaller is faster and loses detail. 512 for SD "
                    "1.x, 768 or 512 for 2.x, 1024 for XL.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31 - 1,
                    tooltip="The same seed and settings learn the same concept; another seed a slightly different one.",
                ),
                io.Int.Input(
                    "preview_every", default=_DEFAULT.snapshot_every, min=0, max=10000,
                    tooltip="Steps between pictures of what has been learned so far, each with a snapshot. 0: no "
                    "pictures. Snapshots lie in a folder per run in output/infusion/snapshots; those of the newest "
                    f"{RUNS_KEPT} runs are kept. Load Training Snapshot reads them.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="White where the subject is: what is around it in the photos is not learned. A mask per "
                    "photo, or one for all.",
                ),
                io.String.Input(
                    "captions", default="", multiline=True, optional=True,
                    tooltip="What the photos show, one template per line, with a pair of curly brackets for the word; "
                    "or the captions of Load Subject Photos, each said of its photo alone. What a caption names sticks "
                    "less to the subject. Empty: neutral ones.",
                    **ADVANCED,
                ),
                ConceptSocket.Input(
                    "continue_from", optional=True, tooltip="A concept that is not yet like the photos, to go on with."
                ),
                io.Boolean.Input(
                    "replace_maps", default=_DEFAULT.replace_maps, optional=True,
                    tooltip="On: only looks are learned; where things stand stays the base model's. Off: faster, and "
                    "outline and pose are learned too. The concept remembers it, and the patch does as it was trained.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "maps_end", default=_DEFAULT.replacement_end, min=0.01, max=1.0, step=0.01, optional=True,
                    tooltip="Share of a sampling run up to which replace_maps holds, the part that decides the layout. "
                    "Later: slower, and detail keeps the base model's outlines. The concept remembers it too.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "overfitting", options=list(OVERFITTING), default="ignored", optional=True,
                    tooltip="measured: show how well the photos are known by heart, for ten ranges of noise. "
                    "restrained: learn less where they are, and show them smaller and turned; it did not help where we "
                    "measured it. Both make a step slower.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "stop_at", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                    tooltip="End before the last step, when the photos are known by heart so far: the mean of the "
                    "bars. 0: never. Needs overfitting to be measured.",
                    **ADVANCED,
                ),
                io.Int.Input(
                    "accumulation", default=1, min=1, max=64, optional=True,
                    tooltip="Passes in each step: as a larger batch, without its memory.", **ADVANCED,
                ),
                *shared_inputs(), *watched_inputs(),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For Save Concept Residual or the patch."),
                io.Image.Output(display_name="loss", tooltip="Loss curve."),
                io.String.Output(display_name="word", tooltip="The word that was trained, for prompts."),
                io.Image.Output(
                    display_name="overfitting", tooltip="How much was known by heart, by noise level and step."
                ),
                previews_output(),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, word: Sequence[str | None] = ()) -> bool | str:
        """Say before the run what is wrong with the word; a linked one is seen when training starts."""
        try:
            return all(given is None or bool(class_word(given)) for given in word)
        except InfusionError as error:
            return str(error)

    @classmethod
    def execute(
        cls, images: list[Tensor], mask: Sequence[Tensor] | None = None, captions: Sequence[str] = ("",),
        **given: list[Any],
    ) -> io.NodeOutput:  # fmt: skip
        """Train; the host gives every input as a list, so that photos of different sizes can be one."""
        return cls._train(images=images, masks=mask, captions=captions, **only("Infusion Train", given))

    @classmethod
    def _train(
        cls, model: Any, clip: Any, vae: Any, images: Sequence[Tensor], word: str, steps: int, batch_size: int,
        learning_rate: float, layout: Any, bins: int, resolution: int, seed: int, preview_every: int,
        masks: Sequence[Tensor] | None = None, captions: Sequence[str] = ("",), continue_from: Stack = (),
        replace_maps: bool = _DEFAULT.replace_maps, maps_end: float = _DEFAULT.replacement_end,
        overfitting: Overfitting = "ignored", stop_at: float = 0.0,
        accumulation: int = 1, checkpointing: bool = False, flip: bool = False, preview_prompts: str = "",
        crop: str = CROPS[0], stop: Stop = "never", take: Take = "last",
    ) -> io.NodeOutput:  # fmt: skip
        """Train with a progress bar and previews; an interrupt keeps the last snapshot."""
        word = class_word(word)
        settings = ResidualSettings(
            steps=steps, batch_size=batch_size, accumulation=accumulation, learning_rate=learning_rate, layout=layout,
            bins=bins, seed=seed,
            snapshot_every=preview_every or _DEFAULT.snapshot_every, replace_maps=replace_maps,
            replacement_end=maps_end, restraint=OVERFITTING[overfitting],
        )  # fmt: skip
        checked_level(stop_at, settings.restraint.measures)
        drawn = prompts_of(preview_prompts, word)
        folder = concept_run(word)
        folder.check()
        encode = Encoding(model, vae)
        groups = groups_of(images, resolution, encode.step(resolution), crop == CROPS[1])
        photos = in_order(groups)
        captions_of_word, said = captions_of(captions, len(photos), word, flip)
        seen = encode.seen(groups, masks, said, settings.restraint, seed, flip)
        with training(model, checkpointing) as denoiser:

            def looked_at(some: Seen) -> tuple[Tensor, list[EncodedPrompt], Tensor | None, Said | None]:
                latents = some.latents.clone().to(denoiser.device, torch.float32)
                weights = None if some.weights is None else some.weights.clone().to(latents)
                prompts = encode_captions(model, clip, captions_of_word, word, latents[:, 0])
                return latents, prompts, weights, some.said

            start = continue_from[-1].residual if continue_from else None
            latents, prompts, weights, own = looked_at(seen[0])
            first = ResidualObjective(denoiser, latents, prompts, word, settings, start, weights, own)
            members = [first, *(first.on(*looked_at(other)) for other in seen[1:])]
            trainer = Trainer(on_shapes(members, [len(some.latents) for some in seen]), settings)
            record = RunRecord(settings, len(photos), resolution, meter=residual_meter(trainer, first))
            thumbnail = thumbnail_of(groups[0].pictures)
            preview = Preview(denoiser, clip, vae, latents[:1, 0].cpu())
            previews = Previews(
                drawn, (lambda asked: preview.draw(trainer.learned(), asked)) if preview_every else None
            )

            def described() -> ConceptResidual:
                return record.described(trainer.learned(), trainer.step, word, thumbnail)

            def write(path: Path) -> object:
                return save_concept(path, described())

            told = {
                **settings.told, "node": "InfusionTrain", "word": word, "captions": captions_of_word, "said": said,
                "photos": hash_of(photos), "masks": hash_of(masks), "flip": flip,
            }  # fmt: skip
            make_room(denoiser, trainer)
            run = Run(trainer, record, previews, write, folder, told, first.measured, stop_at, Finish(stop, take))
            run.train()
        best = run.taken()
        learned = (LoadedConcept(word, described() if best is None else load_concept(best)),)
        return io.NodeOutput(learned, loss_plot(record), word, overfitting_plot(record.indicator), previews.output)


@dataclass(frozen=True)
class Preview:
    """Draws what is being learned.

    Attributes:
        denoiser: the network that is trained on, and drawn with: a host that loads dynamically would hold MODEL's too.
        clip, vae: of the same checkpoint.
        latent: (1, C, H, W), of the size to draw.
    """

    denoiser: HostDenoiser
    clip: Any
    vae: Any
    latent: Tensor

    def draw(self, concept: ConceptResidual, prompts: Sequence[str]) -> list[Tensor]:
        """A picture of each prompt; the network stands ready for training again afterwards."""
        loaded = LoadedConcept("preview", concept)
        pictures = draw(self.denoiser.model, self.clip, self.vae, loaded, prompts, self.latent)
        self.denoiser.load()
        return pictures

"""APT Train: a LoRA that measures its own overfitting and is restrained by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..infusion_core.lora_layers import Targets
from ..infusion_core.training.apt import AptSettings
from ..infusion_core.training.overfitting import TEMPERATURE
from .apt_training import train
from .host.compat import ADVANCED, schema
from .sockets import LoraSocket
from .training_inputs import previews_output, shared_inputs, watched_inputs
from .widgets import only

_DEFAULT = AptSettings()
_NODE = "APT Train"


class APTTrain(io.ComfyNode):  # type: ignore[misc]
    """APT Train."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="APTTrain",
            display_name=_NODE,
            category="Infusion",
            description="Train a LoRA on 3-6 photos. It measures at every step how well it knows them by heart, and is "
            "restrained by that, so that prompts keep being obeyed. Any LoRA loader reads the file.",
            search_aliases=["apt", "train lora", "dreambooth", "lora trainer", "fine-tune", "overfitting", "kohya"],
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base model: Stable Diffusion 1.x, 2.x or XL. Its weights are not changed."
                ),
                io.Clip.Input("clip", tooltip="The model's CLIP."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input(
                    "images",
                    tooltip="3-6 photos of the subject, as a batch or a list of any sizes, from Load Subject Photos "
                    "for one. The centre square is used.",
                ),
                io.String.Input(
                    "identifier", default="sks",
                    tooltip="A rare word that will stand in front of the class word, as in: sks cat. Empty: the class "
                    "word alone, so that every one of the class becomes the subject.",
                ),
                io.String.Input("word", default="cat", tooltip="The subject's plain class, such as cat or backpack."),
                io.Int.Input(
                    "steps", default=_DEFAULT.steps, min=1, max=100000,
                    tooltip="How long to learn. More: nearer to the photos, slower, and more known by heart.",
                ),
                io.Int.Input(
                    "batch_size", default=_DEFAULT.batch_size, min=1, max=64,
                    tooltip="Photos in each pass. More: a steadier result, slower and with more memory.", **ADVANCED,
                ),
                io.Int.Input(
                    "accumulation", default=_DEFAULT.accumulation, min=1, max=64,
                    tooltip="Passes in each step: as a larger batch, without its memory.", **ADVANCED,
                ),
                io.Float.Input(
                    "learning_rate", default=_DEFAULT.learning_rate, min=1e-7, max=1.0, step=1e-7,
                    tooltip="How far each step goes.",
                ),
                io.Int.Input(
                    "rank", default=_DEFAULT.rank, min=1, max=256,
                    tooltip="Of the LoRA's matrices: the larger, the more it can hold, and the larger the file.",
                ),
                io.Float.Input(
                    "alpha", default=0.0, min=0.0, max=1000.0, step=0.5,
                    tooltip="Size of the whole change; 0 for the rank.", **ADVANCED,
                ),
                io.Combo.Input(
                    "targets", options=list(get_args(Targets)), default=_DEFAULT.targets,
                    tooltip="Layers that are trained. cross-attention: how words are read. attention: all attention. "
                    "transformer: feed-forward layers too, the most that kohya's trainer takes.", **ADVANCED,
                ),
                io.Float.Input(
                    "text_rate", default=_DEFAULT.text_rate, min=0.0, max=10.0, step=0.01,
                    tooltip="Learning rate of the CLIP over the model's; 0 leaves the CLIP alone.", **ADVANCED,
                ),
                io.Int.Input(
                    "resolution", default=512, min=64, max=2048, step=8,
                    tooltip="Edge in pixels the photos are scaled to: 512 for SD 1.x, 768 or 512 for 2.x, 1024 for XL.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1, tooltip="Of every random choice."),
                io.Int.Input(
                    "preview_every", default=_DEFAULT.snapshot_every, min=0, max=10000,
                    tooltip="Steps between pictures of what has been learned so far, each with a snapshot in "
                    "output/loras/apt, where Load LoRA, DreamBlend and the Checkpoint Advisor find it. 0: no pictures.",
                ),
                io.Boolean.Input(
                    "restrain", default=True,
                    tooltip="Off: an ordinary LoRA (DreamBooth). The next five are off then, nothing is measured, and "
                    "a step takes two thirds of the time.",
                ),
                io.Boolean.Input(
                    "augment", default=_DEFAULT.restraint.augment,
                    tooltip="Show the photos smaller and turned, the more often the better they are known by heart.",
                    **ADVANCED,
                ),
                io.Boolean.Input(
                    "reweight", default=_DEFAULT.restraint.reweight,
                    tooltip="Learn less at noise levels where the photos are known by heart.", **ADVANCED,
                ),
                io.Float.Input(
                    "stabilisation", default=_DEFAULT.stabilisation, min=0.0, max=1e6, step=0.01,
                    tooltip="How much the features of self-attention are held to the base model's; 0 for not.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "alignment", default=_DEFAULT.alignment, min=0.0, max=1e6, step=0.01,
                    tooltip="How much the maps of cross-attention, which decide where things stand, are held to the "
                    "base model's; 0 for not.", **ADVANCED,
                ),
                io.Float.Input(
                    "temperature", default=TEMPERATURE, min=0.01, max=1e6, step=0.01,
                    tooltip="The larger, the sooner erring less than the base model counts as knowing by heart.",
                    **ADVANCED,
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="White where the subject is: what is around it is not learned. A mask per photo, or one "
                    "for all.",
                ),
                io.Image.Input(
                    "prior_images", optional=True,
                    tooltip="Pictures of others of the class, drawn by the base model for one, so that they stay as "
                    "they are.",
                ),
                io.Float.Input(
                    "prior_weight", default=_DEFAULT.prior_weight, min=0.0, max=100.0, step=0.05, optional=True,
                    tooltip="How much they count.", **ADVANCED,
                ),
                io.String.Input(
                    "captions", default="", multiline=True, optional=True,
                    tooltip="What the photos show, one template per line, with a pair of curly brackets for the "
                    "subject; or the captions of Load Subject Photos, each said of its photo alone. Empty: neutral "
                    "ones.", **ADVANCED,
                ),
                LoraSocket.Input(
                    "continue_from", optional=True,
                    tooltip="A LoRA of the same rank and targets from this node, to go on with.",
                ),
                io.Float.Input(
                    "stop_at", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                    tooltip="End before the last step, when the photos are known by heart so far: the mean of the "
                    "bars. 0: never.",
                    **ADVANCED,
                ),
                *shared_inputs(), *watched_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="With the LoRA in it."),
                io.Clip.Output(display_name="clip", tooltip="With the LoRA in it, where text_rate is not 0."),
                LoraSocket.Output(display_name="lora", tooltip="For core's Save LoRA Weights."),
                io.Image.Output(
                    display_name="overfitting", tooltip="How much was known by heart, by noise level and step."
                ),
                io.Image.Output(display_name="loss", tooltip="Loss curve."),
                io.String.Output(display_name="subject", tooltip="What prompts say for it."),
                previews_output(),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, images: list[Tensor], mask: Sequence[Tensor] | None = None, prior_images: Sequence[Tensor] | None = None,
        captions: Sequence[str] = ("",), **given: list[Any],
    ) -> io.NodeOutput:  # fmt: skip
        """Train; the host gives every input as a list, so that photos of different sizes can be one."""
        return train(images=images, masks=mask, prior_images=prior_images, captions=captions, **only(_NODE, given))

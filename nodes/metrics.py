"""Infusion Overfit Metrics: how much a customised model has changed where it should not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.utils
from comfy_api.latest import io, ui
from torch import Tensor

from ..infusion_core.captions import OTHER_PROMPTS
from ..infusion_core.errors import InfusionError
from ..infusion_core.metrics.fisher import Divergence, fisher_divergence
from .host.compat import schema
from .host.metrics import HostPredictor, comparable, encode, names_concept
from .pictures import square
from .plot import BLUE, GREY, Series, plot
from .widgets import lines_of

PARTS = 10


class InfusionOverfitMetrics(io.ComfyNode):  # type: ignore[misc]
    """Infusion Overfit Metrics."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionOverfitMetrics",
            display_name="Infusion Overfit Metrics",
            category="Infusion",
            description="How much a customised model has changed on prompts that are not about its concept: the latent "
            "Fisher divergence. 0 means that nothing else has changed.",
            search_aliases=["infusion", "fisher divergence", "overfitting", "compare models", "lora", "forgetting"],
            is_output_node=True,
            inputs=[
                io.Model.Input("base_model", tooltip="The model as it was: Stable Diffusion 1.x, 2.x or XL."),
                io.Model.Input(
                    "custom_model",
                    tooltip="The customised model: after a LoRA loader, after Infusion Attention Patch, or another "
                    "checkpoint of the same family.",
                ),
                io.Clip.Input("clip", tooltip="The base model's CLIP."),
                io.Vae.Input("vae", tooltip="The base model's VAE."),
                io.Image.Input(
                    "images",
                    tooltip="Pictures both models are asked about: ordinary ones, not of the subject. The centre "
                    "square is used.",
                ),
                io.String.Input(
                    "prompts", default="\n".join(OTHER_PROMPTS), multiline=True,
                    tooltip="Prompts that are not about the concept, one per line: what ought to stay as it was.",
                ),
                io.Int.Input(
                    "draws", default=64, min=1, max=10000,
                    tooltip="How often the models are compared, each time on another noise. More: surer and slower.",
                ),
                io.Int.Input(
                    "resolution", default=512, min=64, max=2048, step=8,
                    tooltip="Edge in pixels the pictures are scaled to. Use the size you draw at: 512 for SD 1.x, "
                    "768 or 512 for 2.x, 1024 for XL.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**31 - 1,
                    tooltip="Which noise is drawn. The same seed makes two models' figures comparable.",
                ),
                io.Clip.Input(
                    "custom_clip", optional=True,
                    tooltip="The customised model's CLIP, from the same loader or patch. Without it both models read "
                    "the base model's.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The figures in words, prompt by prompt."),
                io.Image.Output(display_name="plot", tooltip="Every draw by its training timestep."),
                io.Float.Output(display_name="divergence", tooltip="Mean over all draws."),
                io.Float.Output(display_name="low", tooltip="Lower bound of the 95% interval."),
                io.Float.Output(display_name="high", tooltip="Upper bound of the 95% interval."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, base_model: Any, custom_model: Any, clip: Any, vae: Any, images: Tensor, prompts: str, draws: int,
        resolution: int, seed: int, custom_clip: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        """Compare the models with a progress bar; the base model goes first."""
        sigmas = comparable(base_model, custom_model)
        lines = lines_of(prompts)
        if not lines:
            raise InfusionError("no prompts; write some that are not about the concept, one per line")
        latents = base_model.model.process_latent_in(vae.encode(square(images, resolution)))
        progress = comfy.utils.ProgressBar(2 * draws)
        texts = encode(clip if custom_clip is None else custom_clip, lines)
        base = HostPredictor(base_model, encode(clip, lines), lambda: progress.update(1))
        custom = HostPredictor(custom_model, texts, lambda: progress.update(1))
        found = fisher_divergence(base, custom, latents, len(lines), sigmas, draws, seed, batch=draws)
        named = [names_concept(text) for text in texts]
        text = f"{report(found, lines, named)}\n{draws} draws of {len(images)} pictures, seed {seed}"
        interval = found.interval
        return io.NodeOutput(
            text, divergence_plot(found), interval.mean, interval.low, interval.high, ui=ui.PreviewText(text)
        )


def report(found: Divergence, prompts: Sequence[str], named: Sequence[bool]) -> str:
    """The figures in words; `named` marks prompts that name a concept and should not be among them."""
    interval = found.interval
    rows = [
        f"  {found.of_prompt(i):.4g}  {prompt}{'  (names a concept!)' if names else ''}"
        for i, (prompt, names) in enumerate(zip(prompts, named, strict=True))
    ]
    return "\n".join(
        [
            f"latent Fisher divergence {interval.mean:.4g} (95% interval {interval.low:.4g} to {interval.high:.4g})",
            f"half the squared norm over {found.elements} numbers, {interval.mean / found.elements:.3g} for each",
            *rows,
        ]
    )


def divergence_plot(found: Divergence) -> Tensor:
    """Every draw by its timestep, and the mean of each tenth of them, as IMAGE (1, H, W, 3)."""
    times, values = found.times.float(), found.values
    parts = min(PARTS, len(values))
    means = [
        (t.mean().item(), v.mean().item())
        for t, v in zip(times.tensor_split(parts), values.tensor_split(parts), strict=True)
    ]
    points = list(zip(times.tolist(), values.tolist(), strict=True))
    series = [
        Series("draws, by training timestep", GREY, points, dot=2),
        Series("mean of each tenth", BLUE, means, 2, 3),
    ]
    return plot(series, 0.0, values.max().item() * 1.05 or 1.0)

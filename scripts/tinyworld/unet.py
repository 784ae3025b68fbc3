"""TinyWorld's UNet, trained on captioned scenes that a text encoder reads to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel

from infusion_core.attention import Plan, QueryKey
from infusion_core.denoiser import Conditioning
from infusion_core.embedded.tinyworld.world import Scene
from infusion_core.embedded.unet import UNetDenoiser
from infusion_core.noise import scaled_linear_sigmas, seeded, stratified_times
from infusion_core.readers import Recorder
from infusion_core.training.objective import Noised, ParameterGroup

from .lesson import Lesson, lesson
from .probes import Grounding, Whereabouts
from .text_encoder import WIDTH

BATCH = 16
HEAVIEST = 40.0  # most that a noise level is weighed
THINGS = 3.0  # how much more the loss inside things counts
AVERAGE = 0.999  # decay of the weights' moving average
PROBE_RATE = 6.0  # the probes' learning rate over the network's
CROSS_ATTENTION_RATE = 2.0  # that of the projections of cross-attention
CROSS_ATTENTION = ("attn2.to_q.", "attn2.to_k.", "attn2.to_v.")
WHEREABOUTS, GROUNDING = 0.05, 0.5  # weights of the auxiliary losses


def build_unet() -> UNet2DConditionModel:
    """SD1.5's structure in small: two levels, one block each, seven cross-attention sites."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers' name for the number of heads
    )


@dataclass(frozen=True)
class Encoded:
    """Scenes as the network is shown them.

    Attributes:
        scenes: N of them.
        latents: (N, 4, 16, 16), half precision.
        covers: how much of each cell each thing covers, (N, 3, 16, 16), half precision; 0 where there are fewer things.
    """

    scenes: list[Scene]
    latents: Tensor
    covers: Tensor


class UNetObjective:
    """Noise prediction, with more weight on high noise and on things.

    Plain epsilon MSE hardly sees the high noise levels, where text decides layout and appearance; the weight
    ``min(1 + sigma^2, 40)`` makes it the v-prediction loss up to a cap. The minimum is the same.

    Args:
        data: what is learned.
        text_encoder: that reads the captions; not trained.
        device: that trains.
    """

    def __init__(self, data: Encoded, text_encoder: CLIPTextModel, device: torch.device) -> None:
        self._data = data
        self._text_encoder = text_encoder.to(device).eval()
        self.unet = build_unet().to(device)
        self._sigmas = scaled_linear_sigmas()
        self._denoiser = UNetDenoiser(self.unet, self._sigmas, "epsilon")
        self.unet.requires_grad_(True).train()
        self._whereabouts, self._grounding = Whereabouts(self.unet), Grounding()
        self._average = AveragedModel(self.unet, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE), use_buffers=False)
        weights = (1 + self._sigmas.square()).clamp(max=HEAVIEST)
        self._weights = (weights / weights.mean()).to(device)

    def groups(self) -> list[ParameterGroup]:
        """The network, its cross-attention apart, and the probes of an auxiliary loss."""
        probes = dict(self._whereabouts.probes.named_parameters(prefix="probe"))
        network = dict(self.unet.named_parameters())
        listening = {k: v for k, v in network.items() if any(part in k for part in CROSS_ATTENTION)}
        return [
            ParameterGroup({k: v for k, v in network.items() if k not in listening}),
            ParameterGroup(listening, CROSS_ATTENTION_RATE),
            ParameterGroup(probes, PROBE_RATE),
        ]

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """``denoising`` and ``whereabouts``, each (B,), and ``grounding``, one per noun that was read."""
        picks = torch.randint(len(self._data.scenes), (BATCH,), generator=generator).tolist()
        times = stratified_times(BATCH, len(self._sigmas), generator)
        read = self._lesson(picks, generator)
        errors = self._errors(read, picks, times, generator)
        covers = self._covers(picks)[read.nouns.rows, read.nouns.things]
        return {
            "denoising": errors * self._weights[times.to(errors.device)],
            "whereabouts": WHEREABOUTS * self._whereabouts.errors(),
            "grounding": GROUNDING * self._grounding.errors(covers),
        }

    @torch.no_grad()
    def validation(self, draws: int, seed: int) -> Tensor:
        """Unweighted losses (draws,) on pictures, captions and noise that are the same at every call."""
        generator = seeded(seed)
        picks = torch.randint(len(self._data.scenes), (draws,), generator=generator).tolist()
        times = stratified_times(draws, len(self._sigmas), generator)
        return self._errors(self._lesson(picks, generator), picks, times, generator)

    def after_step(self) -> None:
        """Follow with the moving average."""
        self._average.update_parameters(self.unet)

    def learned(self) -> UNet2DConditionModel:
        """The moving average of the network, for use."""
        network: UNet2DConditionModel = self._average.module
        return network.eval()

    def extra_state(self) -> Mapping[str, Tensor]:
        """The moving average."""
        return {name: tensor.clone() for name, tensor in self._average.state_dict().items()}

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        self._average.load_state_dict(dict(extra))

    def _lesson(self, picks: list[int], generator: Generator) -> Lesson:
        rng = Random(int(torch.randint(2**62, (), generator=generator)))
        return lesson(self._text_encoder, [self._data.scenes[i] for i in picks], rng)

    def _errors(self, read: Lesson, picks: list[int], times: Tensor, generator: Generator) -> Tensor:
        """Squared errors (B,), more of them inside things."""
        device, data = self._denoiser.device, self._data
        latents = data.latents[picks].float().to(device)
        eps = torch.randn(latents.shape, generator=generator)
        noised = Noised.of(latents, times, eps, self._sigmas, "epsilon")
        maps: dict[str, QueryKey] = {}
        if len(read.replaced):
            with torch.no_grad():
                self._predict(noised, read.states, read.replaced, Plan(readers=[Recorder(maps)]))
        self._whereabouts.clear()
        plan = read.plan(self._denoiser.base, maps, self._grounding.reader(read.nouns))
        everything = torch.arange(len(picks), device=device)
        output = self._predict(noised, read.states, everything, plan)
        return noised.errors(output, 1 + THINGS * self._covers(picks).sum(dim=1, keepdim=True).clamp(max=1))

    def _covers(self, picks: list[int]) -> Tensor:
        return self._data.covers[picks].float().to(self._denoiser.device)

    def _predict(self, noised: Noised, states: Tensor, rows: Tensor, plan: Plan) -> Tensor:
        return self._denoiser.predict(noised.latents[rows], noised.sigma[rows], Conditioning(states[rows]), plan)

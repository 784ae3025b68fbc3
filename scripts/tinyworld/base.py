"""TinyWorld's text encoder and UNet, trained together on captioned scenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel

from infusion_core.attention import Plan, QueryKey
from infusion_core.denoiser import Conditioning
from infusion_core.embedded.tinyworld import words
from infusion_core.embedded.tinyworld.world import Scene
from infusion_core.embedded.unet import UNetDenoiser
from infusion_core.noise import scaled_linear_sigmas, seeded
from infusion_core.readers import Recorder
from infusion_core.training.objective import Noised, ParameterGroup, stratified_times

from .lesson import TOKENIZER, Lesson, lesson
from .probes import Reading, Whereabouts

WIDTH = 160  # of the text context
BATCH = 16
HEAVIEST = 40.0  # most that a noise level is weighed
THINGS = 3.0  # how much more the loss inside things counts
AVERAGE = 0.999  # decay of the weights' moving average
TEXT_RATE = 0.5  # the text encoder's learning rate over the network's
PROBE_RATE = 6.0  # the probes'
WHEREABOUTS, READING = 0.05, 0.1  # weights of the auxiliary losses


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


def build_text_encoder() -> CLIPTextModel:
    """CLIP's causal text encoder in small."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words.VOCABULARY_SIZE,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=words.LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=words.START,
            eos_token_id=words.END,
            pad_token_id=words.END,
        )
    )


@dataclass(frozen=True)
class Encoded:
    """Scenes as the network is shown them.

    Attributes:
        scenes: N of them.
        latents: (N, 4, 16, 16), half precision.
        covers: how much of each cell things cover, (N, 1, 16, 16), half precision.
    """

    scenes: list[Scene]
    latents: Tensor
    covers: Tensor


class BaseObjective:
    """Noise prediction, with more weight on high noise and on things.

    Plain epsilon MSE hardly sees the high noise levels, where text decides layout and appearance; the weight
    ``min(1 + sigma^2, 40)`` makes it the v-prediction loss up to a cap. The minimum is the same.

    Args:
        data: what is learned.
        device: that trains.
    """

    def __init__(self, data: Encoded, device: torch.device) -> None:
        self._data = data
        self.model = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder()}).to(device)
        self._sigmas = scaled_linear_sigmas()
        self._denoiser = UNetDenoiser(self.model["unet"], self._sigmas, "epsilon")
        self.model.requires_grad_(True).train()
        self._whereabouts, self._reading = Whereabouts(self.model["unet"]), Reading(WIDTH, device)
        self._average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE), use_buffers=False)
        weights = (1 + self._sigmas.square()).clamp(max=HEAVIEST)
        self._weights = (weights / weights.mean()).to(device)

    def groups(self) -> list[ParameterGroup]:
        """The networks, and the probes of the auxiliary losses."""
        probes = {
            **dict(self._whereabouts.probes.named_parameters(prefix="probe")),
            **dict(self._reading.probe.named_parameters(prefix="reading")),
        }
        return [
            ParameterGroup(dict(self.model["unet"].named_parameters(prefix="unet"))),
            ParameterGroup(dict(self.model["text_encoder"].named_parameters(prefix="text_encoder")), TEXT_RATE),
            ParameterGroup(probes, PROBE_RATE),
        ]

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """``denoising`` and ``whereabouts``, each (B,), and ``reading``, one per noun that was told its look."""
        picks = torch.randint(len(self._data.scenes), (BATCH,), generator=generator).tolist()
        times = stratified_times(BATCH, len(self._sigmas), generator)
        read = self._lesson(picks, generator)
        errors = self._errors(read, picks, times, generator)
        return {
            "denoising": errors * self._weights[times.to(errors.device)],
            "whereabouts": WHEREABOUTS * self._whereabouts.errors(),
            "reading": READING * self._reading.errors(read.nouns, read.looks),
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
        self._average.update_parameters(self.model)

    def learned(self) -> nn.ModuleDict:
        """The moving average of the networks, rare words lengthened, for use."""
        networks: nn.ModuleDict = self._average.module
        lengthen_rare_words(networks["text_encoder"])
        return networks.eval()

    def extra_state(self) -> Mapping[str, Tensor]:
        """The moving average."""
        return {name: tensor.clone() for name, tensor in self._average.state_dict().items()}

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        self._average.load_state_dict(dict(extra))

    def _lesson(self, picks: list[int], generator: Generator) -> Lesson:
        rng = Random(int(torch.randint(2**62, (), generator=generator)))
        return lesson(self.model["text_encoder"], [self._data.scenes[i] for i in picks], rng)

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
        everything = torch.arange(len(picks), device=device)
        output = self._predict(noised, read.states, everything, read.plan(self._denoiser.base, maps))
        return noised.errors(output, 1 + THINGS * data.covers[picks].float().to(device))

    def _predict(self, noised: Noised, states: Tensor, rows: Tensor, plan: Plan) -> Tensor:
        return self._denoiser.predict(noised.latents[rows], noised.sigma[rows], Conditioning(states[rows]), plan)


@torch.no_grad()
def lengthen_rare_words(text_encoder: CLIPTextModel) -> None:
    """Make embeddings that no caption ever read as long as those of words are on average.

    Training makes words three times as long as they began; a rare word of a real model is as long as any other.
    """
    embeddings = text_encoder.get_input_embeddings().weight
    known = torch.tensor(sorted(TOKENIZER.ids.values()), device=embeddings.device)
    rare = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
    rare[[words.START, words.END, *known.tolist()]] = False
    lengths = embeddings.norm(dim=1, keepdim=True)
    embeddings[rare] *= lengths[known].mean() / lengths[rare]

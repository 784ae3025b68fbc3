"""A host's MODEL and CLIP as the core's `Denoiser` and its encoded captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ...infusion_core.attention import Plan, join_heads, split_heads
from ...infusion_core.checkpointing import checkpointed
from ...infusion_core.denoiser import Conditioning, EncodedPrompt
from ...infusion_core.errors import InfusionError
from ...infusion_core.parts import additions
from ...infusion_core.sites import Site
from .attention import PASS, Replacer, Triple, layer_of, layers_of, patch_inputs, slots_of
from .casting import cast_again, layers_in
from .memory import Memory
from .mentions import MENTIONS
from .model import base_of
from .options import require_unpatched
from .rows import site_name
from .text import ConceptWord, infuse_clip, word_length

_TEXT = "c_crossattn"
CHECKPOINTED = ("BasicTransformerBlock", "ResBlock")  # the host's classes
_EVERYTHING = 1e30  # bytes, for the host to free


@dataclass(frozen=True)
class PlannedPass:
    """A `Pass` under a plan of the core's, whose rows the caller has laid out itself."""

    sites: Mapping[str, Site]
    layers: Mapping[str, Any]
    plan: Plan

    @property
    def share(self) -> float:
        """The plan's."""
        return self.plan.share

    def inputs(self, query: Tensor, key: Tensor, value: Tensor, extra: Mapping[str, Any]) -> Triple:
        """Context-space residuals."""
        return query, key, self.plan.value_input(self.sites[site_name(extra)], value)

    def projected(self, query: Tensor, key: Tensor, value: Tensor, extra: Mapping[str, Any]) -> Triple:
        """The plan's query and key, seen by its readers, and value-space residuals."""
        site, heads = self.sites[site_name(extra)], extra["n_heads"]
        chosen = self.plan.query_key(site, lambda: (split_heads(query, heads), split_heads(key, heads)))
        return join_heads(chosen[0]), join_heads(chosen[1]), self.plan.value(site, value)

    def attended(self, output: Tensor, query: Tensor, key: Tensor, extra: Mapping[str, Any]) -> Tensor:
        """What words' parts add."""
        name, heads = site_name(extra), extra["n_heads"]
        queries, keys = split_heads(query, heads), split_heads(key, heads)
        projected = layer_of(self.layers[name], queries.__getitem__, keys.__getitem__)
        for rows, added in additions(self.plan.injections, self.sites[name], projected):
            output = output.index_add(0, rows, join_heads(added))
        return output


class HostDenoiser:
    """A loaded MODEL whose UNet is frozen; see `infusion_core.denoiser.Denoiser`.

    Attributes:
        model: the host's patcher of the network that is trained on.

    Args:
        model: see there, and `training`.
        checkpointing: keep less for backward and compute more, see `checkpointed`.

    Raises:
        InfusionError: the model is not supported.
    """

    def __init__(self, model: Any, checkpointing: bool = False) -> None:
        self.base = base_of(model)
        self.prediction: Any = self.base.prediction
        self.model, self._inner = model, model.model
        self.sigmas = model.get_model_object("model_sampling").sigmas.detach().clone().float().cpu()
        self._layers = layers_of(self._inner.diffusion_model)
        blocks = self._inner.diffusion_model.modules() if checkpointing else ()
        self._blocks = [block for block in blocks if type(block).__name__ in CHECKPOINTED]
        self._replacers = {slots_of(site)[0]: Replacer() for site in self.base.sites}
        self._layers_of_weights = layers_in(self._inner.diffusion_model)
        self._beside = 0
        self._stay: tuple[Any, ...] | None = None

    def load(self) -> None:
        """Bring the network to its device, as ordinary tensors; again after the host has drawn something.

        What does not fit beside a step stays in main memory, and the host brings its weights layer by layer.
        """
        with torch.inference_mode(False):
            if self._stay is not None:
                self._unload_others(self._stay)
            self._leave_inference_mode()  # first, so that what the host makes of the weights is ordinary too
            comfy.model_management.load_models_gpu([self.model], memory_required=self._beside)
            self._leave_inference_mode()

    def begin(self, beside: int, trained: Sequence[Any] = ()) -> None:
        """Make room for steps: what is not trained leaves the device, and of the network what must.

        Args:
            beside: bytes that a step takes beside the network.
            trained: other patchers of the host's that stay, such as a CLIP's.
        """
        self._beside, self._stay = beside, (self.model, *trained)
        self.load()

    @property
    def weights(self) -> int:
        """Bytes of the network."""
        return int(self.model.model_size())

    @property
    def elsewhere(self) -> int:
        """Bytes of the network that are not on its device."""
        return int(self.weights - self.model.loaded_size())

    @property
    def free(self) -> int | None:
        """Bytes that a step can have, all else out of its way; None on a CPU, whose memory has no such bound."""
        if comfy.model_management.is_device_cpu(self.device):
            return None
        return int(comfy.model_management.get_free_memory(self.device) + self.model.loaded_size())

    def _unload_others(self, stay: Sequence[Any]) -> None:
        loaded = comfy.model_management.current_loaded_models
        keep = [one for one in loaded if any(one.model is patcher for patcher in stay)]
        comfy.model_management.free_memory(_EVERYTHING, self.device, keep)

    def _leave_inference_mode(self) -> None:
        network = self._inner.diffusion_model
        if any(tensor.is_inference() for tensor in (*network.parameters(), *network.buffers())):
            self.model.unpin_all_weights()  # the host knows pinned memory by its place
            leave_inference_mode(network)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        device: torch.device = self.model.load_device
        return device

    def predict(self, noised: Tensor, sigma: Tensor, conditioning: Conditioning, plan: Plan) -> Tensor:
        """The network's own output; the host's model function does the work, at both hook points."""
        options: dict[str, Any] = {"sigmas": sigma, "optimized_attention_override": differentiable_attention}
        patches: dict[str, Any] = {"attn1_output_patch": [self._watching(plan)]} if plan.features else {}
        if not plan.leaves_cross_attention:
            patches["attn2_patch"] = [patch_inputs]
            options |= {
                PASS: PlannedPass(self.base.sites_by_name, self._layers, plan),
                "patches_replace": {"attn2": self._replacers},
            }
        options |= {"patches": patches} if patches else {}
        casting = partial(cast_again, self._layers_of_weights)
        with casting(), checkpointed(self._blocks, casting):
            denoised = self._inner.apply_model(
                noised, sigma, **{_TEXT: conditioning.context}, transformer_options=options, **conditioning.extras
            )
        # The host returns the picture it believes in; a `Denoiser` says what the network said.
        s = sigma.reshape(-1, 1, 1, 1).to(noised)
        if self.prediction == "epsilon":
            return (noised - denoised) / s  # type: ignore[no-any-return]
        return (noised / (s.square() + 1) - denoised) * (s.square() + 1).sqrt() / s  # type: ignore[no-any-return]

    def _watching(self, plan: Plan) -> Callable[[Tensor, Mapping[str, Any]], Tensor]:
        """What shows the output of self-attention to a plan's readers."""

        def watch(features: Tensor, extra: Mapping[str, Any]) -> Tensor:
            for reader in plan.features:
                reader(self.base.sites_by_name[site_name(extra)], features)
            return features

        return watch


@contextmanager
def training(model: Any, checkpointing: bool = False) -> Iterator[HostDenoiser]:
    """Load a MODEL and let gradients through it.

    The host makes weights under inference mode, which backward cannot read; they are replaced by ordinary tensors of
    the same bits, one at a time, and stay so.

    Raises:
        InfusionError: the model is not supported, or carries patches that training cannot obey.
    """
    require_unpatched(model)
    if hasattr(model, "is_dynamic") and model.is_dynamic():
        model = model.get_non_dynamic_delegate()
    denoiser = HostDenoiser(model, checkpointing)
    with torch.inference_mode(False), torch.enable_grad():
        denoiser.load()
        yield denoiser


def encode_captions(model: Any, clip: Any, captions: Sequence[str], word: str, latents: Tensor) -> list[EncodedPrompt]:
    """Captions as the host's network reads them, each with the spans of the word as its only concept.

    Args:
        model: the host's MODEL.
        clip: its CLIP.
        captions: each holds the word.
        word: the concept's.
        latents: (N, C, H, W), for conditioning that depends on the size.

    Raises:
        InfusionError: the captions take different numbers of 77-token chunks.
    """
    infused = infuse_clip(clip, [ConceptWord("", "", word, word_length(clip, word))], Memory())
    out = []
    for caption in captions:
        cond = _cond_of(infused, caption)
        (mentions,) = cond[MENTIONS]
        if mentions.interleaved:
            raise InfusionError("this CLIP gives keys and values, as NegPip's does; connect the CLIP in front of it")
        out.append(EncodedPrompt(_conditioning(model, cond, latents), (mentions.spans.get("", ()),)))
    require_one_length([prompt.conditioning for prompt in out])
    return out


def encode_caption(model: Any, clip: Any, caption: str, latents: Tensor) -> Conditioning:
    """A caption as the host's network reads it; gradients flow through a text encoder that lets them.

    Args:
        model, clip, latents: see `encode_captions`.
        caption: what is said.
    """
    return _conditioning(model, _cond_of(clip, caption), latents)


def require_one_length(captions: Sequence[Conditioning]) -> None:
    """Captions that can be in one batch.

    Raises:
        InfusionError: they take different numbers of 77-token chunks.
    """
    if len({caption.context.shape[1] for caption in captions}) > 1:
        raise InfusionError("the captions are of very different length; make all of them shorter than 75 tokens")


def _cond_of(clip: Any, caption: str) -> dict[str, Any]:
    found: dict[str, Any] = comfy.sampler_helpers.convert_cond(
        clip.encode_from_tokens_scheduled(clip.tokenize(caption))
    )[0]
    return found


def _conditioning(model: Any, cond: dict[str, Any], latents: Tensor) -> Conditioning:
    device = model.load_device
    (encoded,) = comfy.samplers.encode_model_conds(model.model.extra_conds, [cond], latents, device, "positive")
    parts = {k: _row(v, device) for k, v in encoded["model_conds"].items()}
    text = parts.pop(_TEXT)
    return Conditioning(text, parts)


def _row(cond: Any, device: torch.device) -> Tensor:
    value: Tensor = cond.process_cond(batch_size=1, area=None).cond
    return value.to(device).clone()


def differentiable_attention(_: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The host's `optimized_attention_override`: PyTorch's attention, for sage and flash attention have no backward."""
    result: Tensor = attention_pytorch(*args, **kwargs)
    return result


@torch.inference_mode(False)
def leave_inference_mode(network: torch.nn.Module) -> None:
    """Replace weights that the host made under inference mode by ordinary tensors of the same bits, one at a time."""
    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            if value.is_inference():
                setattr(module, name, torch.nn.Parameter(value.detach().clone(), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_inference():
                setattr(module, name, buffer.clone())

"""The patch on a model: what it holds, how it is put on a clone, and the value-space replacers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...infusion_core.errors import InfusionError
from ...infusion_core.residuals import Base, ConceptResidual
from ...infusion_core.sites import Site
from .binding import Memory, infuse_clip, memory_of
from .model import base_of
from .passes import KEY, Pass

BaseLatent = Literal["shared", "own"]


@dataclass(frozen=True)
class Window:
    """A part of the sampling run, as shares of the schedule, 0 to 1."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise InfusionError(f"start {self.start:g} and end {self.end:g} must lie in 0 to 1, start before end")

    def covers(self, sigma: float, model_sampling: Any) -> bool:
        """Whether a noise level lies inside."""
        if self == Window():
            return True
        begins, ends = (float(model_sampling.percent_to_sigma(p)) for p in (self.start, self.end))
        return sigma <= begins and (sigma > ends or self.end == 1)


@dataclass(frozen=True)
class Active:
    """A concept on a model: the name prompts use, its key, residual (block strengths applied), strength and window."""

    name: str
    key: str
    residual: ConceptResidual
    strength: float
    window: Window


@dataclass(frozen=True)
class Patch:
    """Everything a patched model carries; never changed, shared by all clones.

    Attributes:
        base: of the model.
        concepts: all that are at work.
        replacement: when the concept stream attends with the base stream's maps.
        base_latent: where the base stream's latent comes from.
        memory: prompts the patched CLIP encoded.
    """

    base: Base
    concepts: tuple[Active, ...]
    replacement: Window
    base_latent: BaseLatent
    memory: Memory

    def __deepcopy__(self, memo: object) -> Patch:
        return self


def apply(
    model: Any, clip: Any, concepts: Sequence[Active], replacement: Window, base_latent: BaseLatent
) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP with the concepts at work, after those of an earlier patch on the same model.

    Raises:
        InfusionError: unsupported model, a concept of another base, one loaded twice, or patches that disagree.
    """
    from .streams import wrapper  # the wrappers read a Patch

    base = base_of(model)
    for concept in concepts:
        concept.residual.check_fits(base)
    earlier = patch_of(model)
    memory = memory_of(clip) if earlier is None else earlier.memory
    if earlier is not None:
        if (earlier.replacement, earlier.base_latent) != (replacement, base_latent):
            raise InfusionError(
                "two Infusion Attention Patch nodes in a chain must agree in base latent and map replacement; "
                "set both the same or stack the concepts in front of one patch"
            )
        concepts = (*earlier.concepts, *concepts)
    names = [c.name for c in concepts]
    for name in names:
        if names.count(name) > 1:
            raise InfusionError(f"the concept {name!r} is loaded twice; remove one, or raise its strength instead")
    patch = Patch(base, tuple(concepts), replacement, base_latent, memory)
    patched = model.clone()
    for kind, function in wrapper(patch).items():
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, function)
    patched.set_attachments(KEY, patch)
    if earlier is None:
        options = patched.model_options["transformer_options"]
        patches = options["patches"] = options.get("patches", {}).copy()
        patches["attn2_patch"] = [context_inputs, *patches.get("attn2_patch", [])]
    if any(c.residual.layout == "value" for c in concepts):
        _replace_values(patched, base)
    words = {c.name: c.residual.word for c in concepts}
    keys = {c.name: c.key for c in concepts}
    tokens = {c.name: c.residual.tokens for c in concepts}
    return patched, infuse_clip(clip, words, keys, tokens, memory)


def patch_of(model: Any) -> Patch | None:
    """The patch that a MODEL carries, if any."""
    found: Patch | None = model.get_attachment(KEY)
    return found


def check_replacers(patch: Patch, transformer_options: dict[str, Any]) -> None:
    """Refuse to sample when another node took the place of our value-space replacers.

    Raises:
        InfusionError: names the replacer that is there instead.
    """
    if not any(c.residual.layout == "value" for c in patch.concepts):
        return
    installed = transformer_options.get("patches_replace", {}).get("attn2", {})
    for site in patch.base.sites:
        layer, block = _places(site)
        ours, shadowed = installed.get(layer), installed.get(block)
        if not isinstance(ours, ValueReplacer) or not _same(shadowed, ours.shadowed):
            other = shadowed if isinstance(ours, ValueReplacer) else ours
            raise InfusionError(
                f"{_name(other)} replaced cross-attention at {site.name} after Infusion Attention Patch; the layout "
                "'value' needs that place: put Infusion Attention Patch after that node, or train with layout 'block'"
            )


class ValueReplacer:
    """Cross-attention with value-space residuals, for one layer; hands on to the replacer that was there before.

    Attributes:
        before: the replacer that acted at this layer, or None.
        shadowed: the one for the whole block, which the host no longer asks since this one is for the layer.
    """

    def __init__(self, before: Any = None, shadowed: Any = None) -> None:
        self.before, self.shadowed = before, shadowed

    def __deepcopy__(self, memo: object) -> ValueReplacer:
        return self

    def add(self, *args: Any, **kwargs: Any) -> None:
        """What image-prompt nodes call on a replacer that they take for their own kind.

        Raises:
            InfusionError: always.
        """
        raise InfusionError(
            "the layout 'value' holds the places where this node acts; put Infusion Attention Patch after it, or train "
            "with layout 'block'"
        )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        """Attend; projected (R, N or L, C) in, (R, N, C) out."""
        state: Pass | None = extra.get(KEY)
        if state is not None:
            value = state.projected_value(value, extra)
        if self.before is not None:
            result: Tensor = self.before(query, key, value, extra)
            return result
        precision = extra.get("attn_precision")
        attended: Tensor = optimized_attention(
            query, key, value, extra["n_heads"], attn_precision=precision, transformer_options=extra
        )
        return attended


def _replace_values(patched: Any, base: Base) -> None:
    installed = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for site in base.sites:
        layer, block = _places(site)
        shadowed = installed.get(block)
        before = installed.get(layer, shadowed)
        if not isinstance(before, ValueReplacer):
            patched.set_model_attn2_replace(ValueReplacer(before, shadowed), *layer)


def _places(site: Site) -> tuple[tuple[str, int, int], tuple[str, int]]:
    """Where the host looks for the replacer of a layer: its own place, then its block's."""
    side, number, depth = site.name.split(".")
    return (side, int(number), int(depth)), (side, int(number))


def _same(one: Any, other: Any) -> bool:
    """Whether two replacers are one; objects may be copies, as some hosts copy them with the model."""
    return one is other or (not inspect.isroutine(one) and type(one) is type(other))


def context_inputs(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, ...]:
    """The attn2_patch: does what the pass's state says."""
    state: Pass | None = extra.get(KEY)
    return (query, key, value) if state is None else state.context_inputs(query, key, value, extra)


def _name(function: Any) -> str:
    owner = function if hasattr(function, "__name__") else type(function)
    return f"{owner.__module__}.{owner.__name__}"

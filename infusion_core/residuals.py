"""What is learned: residuals added to the value path of a concept word's tokens (Infusion, arXiv 2404.14007, eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import InfusionError
from .schedule import NEVER, Window
from .sites import Site

Layout = Literal["block", "layer", "value", "parts"]
Where = Literal["everywhere", "up"]
Space = Literal["context", "value", "output"]
REPLACEMENT_END = "replacement_end"  # in `training`: the share of a run after which the maps were the concept's own
LAYOUTS: tuple[str, ...] = get_args(Layout)
_SPACES: dict[Layout, Space] = {"block": "context", "layer": "context", "value": "value", "parts": "output"}
BY_BLOCK = ("block", "parts")  # layouts whose places are blocks; those of the others are sites
# Of one concept. 10 bins of 5 tokens at each of SDXL's 70 sites are 7,168,000 numbers, in layout `value` 10 bins of 9.
MOST_NUMBERS = 7_500_000

_ARCHITECTURES = {128: "tinyworld", 160: "tinyworld2", 768: "sd1", 1024: "sd2", 2048: "sdxl"}


def architecture_name(context_width: int) -> str:
    """The name of a base family: ``sd1``, ``sd2``, ``sdxl``, ``tinyworld2``, or ``unet<context width>``."""
    return _ARCHITECTURES.get(context_width, f"unet{context_width}")


@dataclass(frozen=True)
class Base:
    """The base model a concept belongs to.

    Attributes:
        architecture: e.g. ``sd1``, ``sd2``, ``sdxl``, ``tinyworld2``.
        context_width: width of the text context entering K and V.
        prediction: ``epsilon`` or ``v_prediction``.
        sites: every cross-attention layer, in forward order.
    """

    architecture: str
    context_width: int
    prediction: str
    sites: tuple[Site, ...]

    @cached_property
    def sites_by_name(self) -> Mapping[str, Site]:
        """The sites by name."""
        return {site.name: site for site in self.sites}

    def places(self, layout: Layout, parts: int = 1, where: Where = "everywhere") -> dict[str, int]:
        """Names of the residuals a layout has on this base, each with its width.

        Args:
            layout: see `ConceptResidual`.
            parts: that the layout ``parts`` tells apart.
            where: ``up`` for the up half alone.
        """
        sites = [site for site in self.sites if where == "everywhere" or site.block.startswith("up.")]
        if layout in BY_BLOCK:
            return {s.block: self.context_width * (2 * parts if layout == "parts" else 1) for s in sites}
        return {s.name: self.context_width if layout == "layer" else s.value_width for s in sites}


@dataclass(frozen=True)
class ConceptResidual:
    """The residuals of one subject, its word, and where they came from.

    Attributes:
        word: what a prompt says, e.g. ``cat``; several tokens are allowed.
        layout: ``block`` (one context-space residual per UNet block), ``layer`` (one per site) or ``value`` (one
            value-space residual per site, eq. 7 to the letter) or ``parts`` (per UNet block several context-space
            residuals with a key each, by which queries choose among them, see `parts`).
        tensors: residuals by place (block or site name), each (bins, tokens, width). Bin 0 holds the lowest noise. The
            width of ``parts`` is that of all residuals, then that of all keys: ``2 * parts * context_width``.
        architecture, context_width, prediction: of the base model, see `Base`.
        training: free-form settings and results, strings only.
        thumbnail: JPEG or PNG bytes, or None.
    """

    word: str
    layout: Layout
    tensors: Mapping[str, Tensor]
    architecture: str
    context_width: int
    prediction: str = "epsilon"
    training: Mapping[str, str] = field(default_factory=dict)
    thumbnail: bytes | None = None

    @property
    def bins(self) -> int:
        """Number of timestep bins."""
        return next(iter(self.tensors.values())).shape[0]

    @property
    def tokens(self) -> int:
        """Number of tokens of the word."""
        return next(iter(self.tensors.values())).shape[1]

    @property
    def space(self) -> Space:
        """What it is added to: the context, before the value projection; the value; or the output of attention."""
        return space_of(self.layout)

    @property
    def parts(self) -> int:
        """How many parts of a thing it tells apart; 1 in every layout but ``parts``."""
        if self.layout != "parts":
            return 1
        return next(iter(self.tensors.values())).shape[2] // (2 * self.context_width)

    @property
    def map_window(self) -> Window:
        """The part of a sampling run whose noise levels it was trained at with the base stream's attention maps; all
        of it where its file says nothing else."""
        if self.training.get("replace_maps") == "false":
            return NEVER
        return Window(0.0, float(self.training.get(REPLACEMENT_END, 1.0)))

    @property
    def parameter_count(self) -> int:
        """Numbers learned."""
        return sum(t.numel() for t in self.tensors.values())

    def at(self, site: Site) -> Tensor | None:
        """The residual that acts at a site, (bins, tokens, width), or None."""
        return self.tensors.get(place_of(self.layout, site))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ConceptResidual:
        """A copy on another device and in another precision."""
        return replace(self, tensors={k: t.to(device, dtype) for k, t in self.tensors.items()})

    def check_fits(self, base: Base) -> None:
        """Refuse a base model the concept was not made for.

        Raises:
            InfusionError: architecture, context width, prediction type or sites differ.
        """
        made = f"the concept {self.word!r} was made for"
        remedy = "load that base model or train the concept again on this one"
        if self.architecture != base.architecture:
            raise InfusionError(f"{made} {self.architecture}, not {base.architecture}; {remedy}")
        if self.context_width != base.context_width:
            raise InfusionError(f"{made} context width {self.context_width}, not {base.context_width}; {remedy}")
        if self.prediction != base.prediction:
            raise InfusionError(f"{made} {self.prediction} models, this one predicts {base.prediction}; {remedy}")
        places = base.places(self.layout, self.parts)
        for name, tensor in self.tensors.items():
            if name not in places:
                raise InfusionError(f"{made} a UNet with {name}, which this model lacks; {remedy}")
            if tensor.shape[-1] != places[name]:
                raise InfusionError(f"{made} width {tensor.shape[-1]} at {name}, not {places[name]}; {remedy}")


def place_of(layout: Layout, site: Site) -> str:
    """The name of the residual that acts at a site: its block's or its own."""
    return site.block if layout in BY_BLOCK else site.name


def space_of(layout: Layout) -> Space:
    """What residuals of a layout are added to, see `ConceptResidual.space`."""
    return _SPACES[layout]


def zero_residual(
    base: Base, word: str, layout: Layout = "block", bins: int = 1, tokens: int = 1, parts: int = 1,
    where: Where = "everywhere",
) -> ConceptResidual:  # fmt: skip
    """The residual that changes nothing; training starts here.

    Raises:
        InfusionError: unknown layout, bins, tokens or parts below 1, no site where it should be, or more numbers than a
            concept file holds.
    """
    if layout not in LAYOUTS:
        raise InfusionError(f"unknown layout {layout!r}; choose one of: {', '.join(LAYOUTS)}")
    if bins < 1 or tokens < 1 or parts < 1:
        raise InfusionError(f"bins, tokens and parts start at 1, got bins={bins} tokens={tokens} parts={parts}")
    places = base.places(layout, parts, where)
    if not places:
        raise InfusionError("this UNet has no cross-attention in its up half; train everywhere")
    if bins * tokens * sum(places.values()) > MOST_NUMBERS:
        raise InfusionError(
            f"{bins} bins of {tokens} tokens in layout {layout} are more than the {MOST_NUMBERS:,} numbers that a "
            "concept file holds; take fewer bins or parts, a shorter word or layout block"
        )
    tensors = {name: torch.zeros(bins, tokens, width) for name, width in places.items()}
    return ConceptResidual(word, layout, tensors, base.architecture, base.context_width, base.prediction)

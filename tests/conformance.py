"""What every `Denoiser` must make of a `Plan`, and an oracle that materialises every attention map.

`observed` runs the plans in any host, `expected` says what must come out. It shares the frozen diffusers network with
the embedded host, and nothing with `infusion_core`'s attention, injection and readers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
LAYOUTS = ("block", "layer", "value", "parts")
PARTS = 3
PROMPTS = {  # nouns stand where residuals act, in both: other words get little attention
    "own": ("a big circle at left on pink", "a small square at right on teal", "a triangle"),
    "other": ("a small diamond at right", "a picture of a circle", "a triangle at top on pink"),
}
TIMES = {"own": (250, 500, 750), "other": (850, 150, 400)}
BINS = 3
SWAPPED = [2, 0, 2]  # whose map each row of the batch has
RECORDED = slice(1, 3)
WATCHED, POSITIONS = slice(0, 2), {"one": [3], "two": [2, 5, 8]}
SHARE = 0.3  # of supplied maps
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Use:
    """A concept in the batch: rows, and for each the occurrences of its word and a timestep bin."""

    tokens: int
    rows: Sequence[int]
    spans: Sequence[Sequence[Sequence[int]]]
    bins: Sequence[int]
    strength: float
    blocks: Mapping[str, float] = field(default_factory=dict)

    def entries(self) -> Iterator[tuple[int, int, int, int]]:
        """Row, position, token and bin of every addition."""
        for row, occurrences, bin_ in zip(self.rows, self.spans, self.bins, strict=True):
            for occurrence in occurrences:
                for token, position in enumerate(occurrence):
                    yield row, position, token, bin_


USES = {
    "first": Use(1, (0, 2), (((3,),), ((2,), (7,))), (0, 2), 1.0),
    "second": Use(2, (1, 2), (((4, 5),), ((9, 10),)), (1, 0), 0.7, {"mid": 0.5, "up.1": -1.0}),
}


def inputs(model: Any) -> Tensors:
    """Latents, noise levels, texts and residuals for `observed` and `expected`, of a model of the embedded host."""
    generator, base = torch.Generator().manual_seed(0), model.denoiser.base
    given: Tensors = {}
    for which, prompts in PROMPTS.items():
        sigma = model.denoiser.sigmas[list(TIMES[which])]
        noise = torch.randn(3, *model.latent_shape, generator=generator)
        given[f"{which}/sigma"], given[f"{which}/noised"] = sigma, noise * (1 + sigma).reshape(-1, 1, 1, 1)
        given[f"{which}/context"] = torch.cat([model.text.encode(p).conditioning.context for p in prompts])
    for name, use in USES.items():
        for layout in LAYOUTS:
            for place, width in base.places(layout, PARTS).items():
                residual = torch.randn(BINS, use.tokens, width, generator=generator) * 2
                given[f"{name}/{layout}/{place}"] = residual
    return given


def residuals(given: Tensors, name: str, layout: str) -> Tensors:
    """The residuals of a concept by place."""
    prefix = f"{name}/{layout}/"
    return {key.removeprefix(prefix): tensor for key, tensor in given.items() if key.startswith(prefix)}


# --- in a host -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """A `Denoiser`, the package its core is called by there, and what it is shown."""

    denoiser: Any
    package: str
    given: Tensors

    def core(self, module: str) -> ModuleType:
        """A module of the core."""
        return importlib.import_module(f"{self.package}.{module}")

    def predict(self, which: str = "own", **plan: Any) -> Tensor:
        """What the denoiser says of latents and texts under a plan."""
        noised, sigma, context = (self.given[f"{which}/{name}"].clone() for name in ("noised", "sigma", "context"))
        conditioning = self.core("denoiser").Conditioning(context)
        said: Tensor = self.denoiser.predict(noised, sigma, conditioning, self.core("attention").Plan(**plan))
        return said

    def record(self, which: str = "own", **plan: Any) -> tuple[Tensor, Any]:
        """The same, and the queries and keys that all rows attended with."""
        maps: dict[str, tuple[Tensor, Tensor]] = {}
        return self.predict(which, **plan, readers=[self.core("readers").Recorder(maps)]), maps

    def injections(self, layout: str) -> list[Any]:
        """Both concepts in one layout."""
        base, made = self.denoiser.base, []
        for name, use in USES.items():
            tensors = residuals(self.given, name, layout)
            residual = self.core("residuals").ConceptResidual(
                name, layout, tensors, base.architecture, base.context_width, base.prediction
            )
            loaded = self.core("concepts").LoadedConcept(name, residual, use.strength, use.blocks)
            made.append(self.core("injection").inject(loaded, use.rows, use.spans, use.bins))
        return made


@torch.no_grad()
def observed(denoiser: Any, package: str, given: Tensors) -> Tensors:
    """What a host gives for every plan."""
    host, out = Host(denoiser, package, given), Tensors()
    attention, readers = host.core("attention"), host.core("readers")
    out["plain"] = host.predict()
    _keep(out, "recorded", *host.record())
    rows: dict[str, tuple[Tensor, Tensor]] = {}
    _keep(out, "rows", host.predict(readers=[readers.Recorder(rows, RECORDED)]), rows)
    _keep(out, "swapped", *host.record(source=attention.MapsOfRows(SWAPPED)))
    _, other = host.record("other")
    supplied = attention.SuppliedMaps(other)
    _keep(out, "supplied", *host.record(source=supplied))
    out["share"] = host.predict(source=supplied, share=SHARE)
    some = {site: (query[RECORDED], key[RECORDED]) for site, (query, key) in other.items()}
    out["some rows"] = host.predict(source=attention.SuppliedMaps(some, RECORDED))
    reader = host.core("dreamblend").MapDistance(other)
    host.predict(readers=[reader])
    out["distance"] = reader.total
    features: Tensors = {}
    out["watched"] = host.predict(features=[lambda site, seen: features.__setitem__(site.name, seen)])
    out |= {f"features/{site}": seen for site, seen in features.items()}
    host.predict(source=supplied, features=[lambda site, seen: features.__setitem__(site.name, seen)])
    out |= {f"features of supplied/{site}": seen for site, seen in features.items()}
    for layout in LAYOUTS:
        out[layout] = host.predict(injections=host.injections(layout))
        out[f"supplied {layout}"] = host.predict(source=supplied, injections=host.injections(layout))
    for case, source in (("words", attention.OwnMaps()), ("supplied words", supplied)):
        maps = readers.WordMaps(tuple(POSITIONS))
        host.predict(source=source, readers=[readers.WordReader(WATCHED, POSITIONS, maps)])
        out |= {f"{case}/{word}/{count}": total for (word, count), total in maps.sums.items()}
    return out


def _keep(out: Tensors, case: str, said: Tensor, maps: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    out[case] = said
    for site, (query, key) in maps.items():
        out[f"{case}/{site}/query"], out[f"{case}/{site}/key"] = query, key


# --- the oracle ----------------------------------------------------------------------------------------------------

Pair = tuple[Tensor, Tensor]


@dataclass
class Explicit:
    """One forward pass of the diffusers network with every softmax map written out.

    Attributes:
        choose: from a site's name and own query and key, the ones to attend with.
        layout: of the residuals that are added, or None.
        given: holds them.
        share: of the chosen maps; the rest is of each row's own.
        seen: filled: query and key that were attended with, by site.
        maps: filled: the maps (R, heads, N, L), by site.
        features: filled: what self-attention gives, (R, N, C), by site.
    """

    choose: Callable[[str, Tensor, Tensor], Pair]
    layout: str | None
    given: Tensors
    share: float = 1.0
    seen: dict[str, Pair] = field(default_factory=dict)
    maps: Tensors = field(default_factory=dict)
    features: Tensors = field(default_factory=dict)

    def run(self, model: Any, which: str = "own") -> Tensor:
        """The network's output."""
        unet, sigma = model.denoiser.unet, self.given[f"{which}/sigma"]
        scaled = self.given[f"{which}/noised"] / (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
        before = dict(unet.attn_processors)
        ours = {f"{path}.attn2.processor": self.processor(site) for path, site in model.denoiser._sites.items()}
        unet.set_attn_processor({**before, **ours})
        handles = [
            unet.get_submodule(f"{path}.attn1.to_out.0").register_forward_hook(
                lambda _, given, seen, name=site.name: self.features.__setitem__(name, seen)
            )
            for path, site in model.denoiser._sites.items()
        ]
        out = unet(scaled, torch.tensor(TIMES[which]), encoder_hidden_states=self.given[f"{which}/context"]).sample
        for handle in handles:
            handle.remove()
        unet.set_attn_processor(before)
        return out  # type: ignore[no-any-return]

    def processor(self, site: Any) -> Callable[..., Tensor]:
        """Cross-attention at a site."""

        def attend(attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
            def split(x: Tensor) -> Tensor:
                return x.unflatten(-1, (attn.heads, -1)).permute(0, 2, 1, 3)

            context = encoder_hidden_states.clone()
            if self.layout in ("block", "layer"):
                self.add(context, site)
            value = attn.to_v(context)
            if self.layout == "value":
                self.add(value, site)
            own = split(attn.to_q(hidden_states)), split(attn.to_k(encoder_hidden_states))
            query, key = self.seen[site.name] = self.choose(site.name, *own)
            maps = self.share * _maps(query, key) + (1 - self.share) * _maps(*own)
            self.maps[site.name] = maps
            mixed = torch.einsum("rhnl,rhlw->rnhw", maps, split(value))
            if self.layout == "parts":
                self.add_parts(mixed, attn, site, query, maps)
            return attn.to_out[0](mixed.flatten(2))  # type: ignore[no-any-return]

        return attend

    def add(self, target: Tensor, site: Any) -> None:
        """Both concepts' residuals, one by one."""
        assert self.layout is not None
        for name, use in USES.items():
            residual = residuals(self.given, name, self.layout)[site.block if self.layout == "block" else site.name]
            for row, position, token, bin_ in use.entries():
                target[row, position] += use.strength * use.blocks.get(site.block, 1.0) * residual[bin_, token]

    def add_parts(self, mixed: Tensor, attn: Any, site: Any, query: Tensor, maps: Tensor) -> None:
        """Both concepts' parts, head by head and part by part, to attention's output (R, N, heads, head width)."""
        for name, use in USES.items():
            numbers = residuals(self.given, name, "parts")[site.block]
            for row, position, token, bin_ in use.entries():
                values, keys = numbers[bin_, token].reshape(2, PARTS, -1)
                strength = use.strength * use.blocks.get(site.block, 1.0)
                for head in range(attn.heads):
                    wide = slice(head * query.shape[3], (head + 1) * query.shape[3])
                    scores = query[row, head] @ attn.to_k(keys)[:, wide].T / query.shape[3] ** 0.5  # (N, PARTS)
                    shares = maps[row, head, :, position, None] * torch.softmax(scores, 1)
                    for part in range(PARTS):
                        mixed[row, :, head] += strength * shares[:, part, None] * attn.to_v(values)[part, wide]


def _maps(query: Tensor, key: Tensor) -> Tensor:
    return torch.softmax(torch.einsum("rhnw,rhlw->rhnl", query, key) / query.shape[-1] ** 0.5, -1)


@torch.no_grad()
def expected(model: Any, given: Tensors) -> Tensors:
    """What must come out, from the embedded host's model."""
    out = Tensors()

    def own(site: str, query: Tensor, key: Tensor) -> Pair:
        return query, key

    def swapped(site: str, query: Tensor, key: Tensor) -> Pair:
        return torch.stack([query[row] for row in SWAPPED]), torch.stack([key[row] for row in SWAPPED])

    def supplied(site: str, query: Tensor, key: Tensor) -> Pair:
        return others.seen[site]

    def some(site: str, query: Tensor, key: Tensor) -> Pair:
        return torch.cat([query[:1], others.seen[site][0][1:]]), torch.cat([key[:1], others.seen[site][1][1:]])

    others = Explicit(own, None, given)
    others.run(model, "other")
    out["share"] = Explicit(supplied, None, given, SHARE).run(model)
    out["some rows"] = Explicit(some, None, given).run(model)
    for case, choose in (("recorded", own), ("swapped", swapped), ("supplied", supplied)):
        explicit = Explicit(choose, None, given)
        _keep(out, case, explicit.run(model), explicit.seen)
        if case == "recorded":
            out["plain"] = out["watched"] = out["recorded"]
            apart = [(explicit.maps[site] - maps).abs().flatten(1).mean(1) for site, maps in others.maps.items()]
            out["distance"] = torch.stack(apart).sum(0)
            _keep(out, "rows", out["plain"], {s: (q[RECORDED], k[RECORDED]) for s, (q, k) in explicit.seen.items()})
        if case != "swapped":
            of = "features" if case == "recorded" else "features of supplied"
            out |= {f"{of}/{site}": seen for site, seen in explicit.features.items()}
            out |= _words("words" if case == "recorded" else "supplied words", explicit.maps)
    for layout in LAYOUTS:
        out[layout] = Explicit(own, layout, given).run(model)
        out[f"supplied {layout}"] = Explicit(supplied, layout, given).run(model)
    return out


def _words(case: str, maps: Tensors) -> Tensors:
    """What each word gets, mean over heads, summed over the sites of one size."""
    out: Tensors = {}
    for one in maps.values():
        for word, positions in POSITIONS.items():
            shares = one[WATCHED].mean(1)[..., positions].sum(-1)  # (pictures, N)
            name = f"{case}/{word}/{shares.shape[1]}"
            out[name] = out[name] + shares if name in out else shares
    return out


def differences(ours: Tensors, wanted: Tensors) -> dict[str, float]:
    """How far each tensor is off, relative to its largest number; those beyond the tolerance, or not there at all."""
    off = {}
    for name in ours.keys() | wanted.keys():
        if name not in ours or name not in wanted or ours[name].shape != wanted[name].shape:
            off[name] = float("inf")
            continue
        far = (ours[name].double() - wanted[name].double()).abs().max() / wanted[name].double().abs().max()
        off[name] = far.item()
    return {name: far for name, far in off.items() if not far < TOLERANCE}


def assert_conforms(ours: Tensors, wanted: Tensors) -> None:
    """Everything came out as it must; and the plans differ enough that a wrong one would show."""
    off = differences(ours, wanted)
    assert not off, off
    apart = [(case, "plain") for case in ("swapped", "supplied", "share", "some rows", *LAYOUTS)]
    apart += [(case, "supplied") for case in ("share", "some rows")]
    apart += [(f"supplied {layout}", case) for layout in LAYOUTS for case in (layout, "supplied")]
    for one, other in apart:
        assert (wanted[one] - wanted[other]).abs().max() > 0.01 * wanted[other].abs().max(), (one, other)

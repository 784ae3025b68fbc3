"""One forward pass of the two streams: which rows supply query inputs, which receive residuals."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...infusion_core.attention import Plan, join_heads, split_heads
from ...infusion_core.errors import InfusionError
from ...infusion_core.injection import Injection, inject
from ...infusion_core.parts import additions
from ...infusion_core.sites import Site
from .attention import Triple, layer_of
from .grown import Grown, InputPatch, trace
from .mentions import Mentions, Texts
from .options import is_foreign
from .patch import Patch
from .rows import BaseRow, Batch, Entry, batch_of, site_name
from .run import Run

_BATCH, _GROWN = "infusion_batch", "infusion_grown"  # in a block's options: how its rows are laid out
_ADDED = "infusion_added"  # there too: what the parts of words will add to the output


@dataclass(frozen=True)
class Acting:
    """How a concept acts at one noise level: with the residual of which timestep bin, at what strength."""

    bin: int
    strength: float


@dataclass(frozen=True)
class ConceptRows:
    """A conditioning whose rows are the concept stream, at one noise level.

    Attributes:
        texts: its own, which pictures take in turn; with none that names a concept only its regions do.
        replaced: for each of them, whether its rows attend with the base rows' maps.
    """

    texts: Texts
    replaced: tuple[bool, ...]

    def check_fit(self, pictures: int) -> None:
        """Refuse a batch in which it is not sure which picture has which text.

        Raises:
            InfusionError: its texts do not go evenly into so many pictures.
        """
        if pictures % len(self.texts):
            raise InfusionError(
                f"a conditioning of {len(self.texts)} prompts for a batch of {pictures}: every picture needs its own; "
                "set batch_size of the latent to the count of Infusion Prompt Batch, or a multiple"
            )

    def text_of(self, picture: int) -> Mentions | None:
        """What a picture's text names."""
        return self.texts[picture % len(self.texts)]

    def takes_maps(self, pictures: int) -> slice | list[int]:
        """Which of the pictures attend with the base rows' maps."""
        if all(self.replaced):
            return slice(None)
        return [picture for picture in range(pictures) if self.replaced[picture % len(self.replaced)]]


@dataclass
class TwoStreamPass:
    """A `Pass` with the two streams in it.

    Map replacement happens at the inputs, right where weights are shared: rows that take their base rows' query inputs
    have their attention maps, for keys are the same text's.

    Attributes:
        patch: what is at work.
        run: what is known of the sampling run.
        acting: concepts whose residual is added at this noise level, by key.
        concept_rows: by conditioning; rows with a `BaseRow` are the base stream, all others the unpatched model's.
        pictures: in the batch.
        layers: the host's cross-attention layers by site; empty until the network runs.
        scouting: a pass of the unpatched model that notes what the regions of its conditionings name.
        queries: of rows whose concept rows are not in the same forward, (tiles, pictures, N, C) by site and
            conditioning, in the order of forwards.
    """

    patch: Patch
    run: Run
    acting: Mapping[str, Acting]
    concept_rows: Mapping[Entry, ConceptRows]
    pictures: int
    layers: Mapping[str, Any] = field(default_factory=dict)
    scouting: bool = False
    queries: dict[tuple[str, Entry], deque[Tensor]] = field(default_factory=lambda: defaultdict(deque))
    share: ClassVar[float] = 1.0  # see `Pass`
    _plans: dict[tuple[Any, ...], Plan] = field(default_factory=dict)
    _batches: dict[tuple[Any, ...], Batch] = field(default_factory=dict)

    def inputs(self, query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Triple:
        """Query inputs of base rows for concept rows, and context-space residuals."""
        batch = extra[_BATCH] = self._batch(extra, key)
        query = self._replaced(site_name(extra), query, batch)
        return query, key, self._plan(batch, None, value).value_input(self._site(extra), value)

    def around(self, others: Sequence[InputPatch]) -> InputPatch:
        """The attn2_patch in place of other nodes': `inputs`, theirs, then residuals on the rows that they added."""
        ordered = sorted(others, key=is_foreign)
        foreign = list(filter(is_foreign, others))

        def run(query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Triple:
            query, key, value = given = self.inputs(query, key, value, extra)
            for patch in ordered:
                query, key, value = patch(query, key, value, extra)
            if len(query) == len(given[0]):
                plan = self._plan(extra[_BATCH], None, value)
            else:
                grown = extra[_GROWN] = self._grown(foreign, given, value, extra)
                plan = self._plan(extra[_BATCH], grown, value)
                value = plan.value_input(self._site(extra), value)
            extra[_ADDED] = self._parts(plan, query, key, extra)
            return query, key, value

        return run

    def outputs(self, output: Tensor, extra: Any) -> Tensor:
        """The attn2_output_patch: what the parts of words add, (R, N, C)."""
        for rows, added in extra.pop(_ADDED, ()):
            output = output.index_add(0, rows, added)
        return output

    def projected(self, query: Tensor, key: Tensor, value: Tensor, extra: Any) -> Triple:
        """Value-space residuals."""
        plan = self._plan(extra[_BATCH], extra.get(_GROWN), value)
        return query, key, plan.value(self._site(extra), value)

    def attended(self, output: Tensor, query: Tensor, key: Tensor, extra: Any) -> Tensor:
        """As it is: the parts of words join at the output, where no other node's replacer is in the way."""
        return output

    def _parts(self, plan: Plan, query: Tensor, key: Tensor, extra: Any) -> list[tuple[Tensor, Tensor]]:
        """Rows and what the parts of words add to each after the output projection, from the inputs of the layer."""
        if not any(injection.space == "output" for injection in plan.injections):
            return []
        layer, site = self.layers[site_name(extra)], self._site(extra)
        projected = layer_of(
            layer,
            lambda rows: split_heads(layer.to_q(query[rows]), layer.heads),
            lambda rows: split_heads(layer.to_k(key[rows]), layer.heads),
        )
        found = [(rows, join_heads(added)) for rows, added in additions(plan.injections, site, projected)]
        return [(rows, layer.to_out(added) - layer.to_out(torch.zeros_like(added[:1, :1]))) for rows, added in found]

    def _site(self, extra: Mapping[str, Any]) -> Site:
        return self.patch.base.sites_by_name[site_name(extra)]

    def _batch(self, extra: Mapping[str, Any], context: Tensor) -> Batch:
        layout = (tuple(extra["cond_or_uncond"]), tuple(extra["uuids"]), len(context))
        if layout not in self._batches:
            batch = batch_of(extra, context, self.pictures, "Infusion Attention Patch")
            for entry in self.concept_rows.keys() & set(batch.entries):
                self.concept_rows[entry].check_fit(batch.pictures)
            self._batches[layout] = batch
        return self._batches[layout]

    def _replaced(self, site: str, query: Tensor, batch: Batch) -> Tensor:
        """Query inputs (R, N, C), those of concept rows replaced by their base rows', from this forward or before."""
        base = {(index, uuid.original): i for i, (index, uuid) in enumerate(batch.entries) if isinstance(uuid, BaseRow)}
        wanted = {entry: i for i, entry in enumerate(batch.entries) if self._takes_maps(entry)}
        noted = {entry: i for i, entry in enumerate(batch.entries)} if self.scouting else base
        for entry in noted.keys() - wanted.keys():
            self.queries[site, entry].append(batch.part(query, noted[entry]).clone())
        replaced = query.clone() if wanted else query
        for entry, i in wanted.items():
            supplied = batch.part(query, base[entry]) if entry in base else self._noted(site, entry)
            pictures = self.concept_rows[entry].takes_maps(batch.pictures)
            batch.part(replaced, i)[:, pictures] = supplied[:, pictures]
        return replaced

    def _takes_maps(self, entry: Entry) -> bool:
        return entry in self.concept_rows and any(self.concept_rows[entry].replaced)

    def _noted(self, site: str, entry: Entry) -> Tensor:
        if not self.queries[site, entry]:
            raise InfusionError(
                f"another node took the base stream's rows away at {site}, so no concept can act; leave that node out"
            )
        return self.queries[site, entry].popleft()

    def _grown(self, foreign: Sequence[InputPatch], given: Triple, value: Tensor, extra: Any) -> Grown:
        """What other nodes' patches made of the rows given, and what the texts they brought name."""
        batch: Batch = extra[_BATCH]
        layout = (batch, *value.shape[:2])
        if layout not in self.run.grown:
            rows = trace(foreign, *given, extra)
            find = self.patch.memory.find
            texts = [None if r.positions else find(v, whole=True) for r, v in zip(rows, value, strict=True)]
            self.run.grown[layout] = Grown(rows, texts)
            self.run.learn(self.run.grown[layout].named(batch))
        return self.run.grown[layout]

    def _plan(self, batch: Batch, grown: Grown | None, like: Tensor) -> Plan:
        """The residuals for the rows of one forward, made once per layout."""
        layout = (batch, id(grown), like.shape[1], like.dtype, like.device)
        if layout not in self._plans:
            context = value = own = self._own(batch)
            if grown is not None:  # rows that were there before hold context-space residuals already
                context = grown.regions(batch)
                value = context + grown.taken_over(dict(own))
            self._plans[layout] = Plan(
                injections=[
                    injection
                    for key in self.acting
                    for injection in self._inject(
                        key, context if self.patch.concepts[key].residual.space == "context" else value, like
                    )
                ]
            )
        return self._plans[layout]

    def _own(self, batch: Batch) -> list[tuple[int, Mentions]]:
        """The rows of the concept stream, each with what its own text names."""
        return [
            (row, text)
            for i, entry in enumerate(batch.entries)
            for row in (batch.rows(i) if entry in self.concept_rows else ())
            if (text := self.concept_rows[entry].text_of(row % batch.pictures)) is not None
        ]

    def _inject(self, key: str, rows: Sequence[tuple[int, Mentions]], like: Tensor) -> Iterator[Injection]:
        """A concept on rows (R, L, D), each with the mentions of its text; negative where its word is."""
        concept, acting = self.patch.placed(key, like.device, like.dtype), self.acting[key]
        named = [(row, mentions.repeated(like.shape[1])) for row, mentions in rows if mentions.spans.get(key)]
        for sign in (1, -1):
            spans = {row: found for row, mentions in named if (found := mentions.signed(key, sign))}
            if spans:
                signed = replace(concept, strength=sign * acting.strength)
                yield inject(signed, spans.keys(), list(spans.values()), [acting.bin] * len(spans), like.device)
                self.run.acted.add(key)

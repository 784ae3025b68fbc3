"""A stack of nodes drawn with a concept and without, and what must hold: every way in which it does not is a fault."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server
from tests.host import graphs

CIRCLE = "3"  # where the word stands in PROMPT: start, a, big, circle
PROMPT = "a big {word} at left on pink"
OTHER = "a big triangle at right on teal"
CONCEPT = "round"  # its word is "circle"
_numbers = itertools.count()


@dataclass
class Bench:
    """What a stack is built from.

    Attributes:
        graph: that grows.
        model, clip, vae: TinyWorld's, patched or not.
        text: the prompt.
        file: of the concept.
    """

    graph: Graph
    model: Output
    clip: Output
    vae: Output
    text: str
    file: str

    def add(self, class_type: str, **inputs: Any) -> Output:
        return self.graph.add(class_type, **inputs)

    def encode(self, text: str) -> Output:
        """Core's CLIP Text Encode."""
        return graphs.encode(self.graph, self.clip, text)

    def sample(self, positive: Output | None = None, model: Output | None = None, **options: Any) -> Output:
        """Core's KSampler with an empty negative."""
        positive, model = positive or self.encode(self.text), model or self.model
        negative = options.pop("negative", None) or self.encode("")
        return graphs.sample(self.graph, model, positive, negative, **options)

    def reference(self, text: Output, positions: str = CIRCLE, scale: float = 1.0) -> Output:
        """The model with Infusion a second time, by hand, on rows that read a text."""
        return self.add(
            "TestReference", model=self.model, file=self.file, positions=positions, text=text, maps=True, scale=scale
        )

    def mask(self, left: int, width: int) -> Output:
        """A mask of 128 x 128 that is 1 in an upright stripe."""
        nothing = self.add("SolidMask", value=0.0, width=128, height=128)
        if not width:
            return nothing
        stripe = self.add("SolidMask", value=1.0, width=width, height=128)
        return self.add("MaskComposite", destination=nothing, source=stripe, x=left, y=0, operation="add")

    def image(self, size: int = 128) -> Output:
        """A picture with edges."""
        empty = self.add("EmptyImage", width=size, height=size, batch_size=1, color=0x4080C0)
        small = self.add("EmptyImage", width=size // 2, height=size // 2, batch_size=1, color=0xF0E020)
        return self.add("ImageCompositeMasked", destination=empty, source=small, x=size // 4, y=size // 4,
                        resize_source=False)  # fmt: skip

    def latent_of(self, image: Output) -> Output:
        """An image as a latent, so that it can be compared."""
        return self.add("VAEEncode", pixels=image, vae=self.vae)


Build = Callable[[Bench], Output]  # the latent that a stack draws
Before = Callable[[Graph, Output, Output], tuple[Output, Output]]  # MODEL and CLIP, in front of our patch


@dataclass(frozen=True)
class Pair:
    """A stack of Infusion and another pack.

    Attributes:
        build: the stack.
        text: its prompt, with the place of the word.
        before: what stands in front of our patch.
        oracle: draws the same without our patch, through `Bench.reference`.
        twin: draws the same with our patch, through other nodes.
        near: how far the concept's picture may be from those two.
        acts: the concept changes the picture; where it cannot, there must be a warning.
    """

    build: Build
    text: str = PROMPT
    before: Before | None = None
    oracle: Build | None = None
    twin: Build | None = None
    near: float = 2e-3
    acts: bool = True
    zero: float = 1e-4


def drawn(server: Server, pair: Pair, word: str, concept: str | None, strength: float = 1.0,
          build: Build | None = None) -> tuple[torch.Tensor, list[str]]:  # fmt: skip
    """The latent of a stack, and the warnings that came with it."""
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    if pair.before:
        model, clip = pair.before(graph, model, clip)
    if concept is not None:
        model, clip = graphs.patch(graph, model, clip, [concept], strength)
    file = str(server.base / "models" / "infusion" / f"{CONCEPT}.safetensors")
    bench = Bench(graph, model, clip, vae, pair.text.format(word=word), file)
    name = f"trial-{next(_numbers)}"  # a name of its own: the host writes nothing for a graph that it has run
    graphs.keep(graph, (build or pair.build)(bench), name)
    ran = server.run(graph)
    warnings = [m["data"]["text"] for m in ran.messages if m["type"] == "infusion.warning"]
    return graphs.kept(server, name), warnings


def check(server: Server, pair: Pair) -> None:
    """Fail with everything that does not hold for a stack."""
    found = faults(server, pair)
    assert not found, "\n".join(found)


def faults(server: Server, pair: Pair) -> list[str]:
    """Everything that does not hold for a stack."""
    found: list[str] = []
    for claim in (_without_the_word, _at_no_strength, _at_work):
        try:
            found += claim(server, pair)
        except PromptError as error:
            found.append(f"{claim.__name__}: raised {str(error)[:300]}")
    return found


def _without_the_word(server: Server, pair: Pair) -> Iterator[str]:
    (plain, _), (ours, _) = (drawn(server, pair, "square", name) for name in (None, CONCEPT))
    if not torch.equal(ours, plain):
        yield f"without the word the picture moves by {graphs.close(ours, plain):.2g}"


def _at_no_strength(server: Server, pair: Pair) -> Iterator[str]:
    plain, _ = drawn(server, pair, "circle", None)
    off, _ = drawn(server, pair, "circle", CONCEPT, 0.0)
    zero, _ = drawn(server, pair, "circle", "nothing")
    if not torch.equal(off, plain):
        yield f"strength 0 moves the picture by {graphs.close(off, plain):.2g}"
    if graphs.close(zero, plain) > pair.zero:
        yield f"a concept of zeros moves the picture by {graphs.close(zero, plain):.2g}"


def _at_work(server: Server, pair: Pair) -> Iterator[str]:
    plain, _ = drawn(server, pair, "circle", None)
    ours, warnings = drawn(server, pair, "circle", CONCEPT)
    moved = graphs.close(ours, plain)
    if pair.acts and moved < 0.05:
        yield f"the concept does nothing ({moved:.2g}); warnings: {warnings}"
    if not pair.acts and not warnings:
        yield f"no warning (the picture moved by {moved:.2g})"
    for name, concept, build in (("oracle", None, pair.oracle), ("twin", CONCEPT, pair.twin)):
        if build:
            expected, _ = drawn(server, pair, "circle", concept, build=build)
            if graphs.close(ours, expected) > pair.near:
                yield f"differs from its {name} by {graphs.close(ours, expected):.2g} (moved {moved:.2g})"

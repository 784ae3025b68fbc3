"""ComfyUI Prompt Control beside Infusion: its encoders, its schedules, its regions."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui_process.graph import Graph, Output
from comfyui_process.server import Server
from tests.host import graphs

from .trial import OTHER, Bench, Build, Pair, check

PACKS = ("comfyui-prompt-control",)


def encoded(bench: Bench, text: str | None = None) -> Output:
    """The node's conditioning."""
    return bench.add("PCTextEncode", clip=bench.clip, text=text or bench.text)


def node(bench: Bench) -> Output:
    return bench.sample(encoded(bench))


def referred(positions: str, text: str | None = None) -> Build:
    """The same prompt, or another in its place, with Infusion by hand."""

    def build(bench: Bench) -> Output:
        positive = encoded(bench, text)
        return bench.sample(positive, bench.reference(positive, positions))

    return build


def core(*texts: str, how: str = "ConditioningCombine") -> Build:
    """Core's nodes for the same, two texts put together with one of them."""

    def build(bench: Bench) -> Output:
        first, *rest = [bench.encode(text) for text in texts]
        names = ("conditioning_1", "conditioning_2")
        if how == "ConditioningConcat":
            names = ("conditioning_to", "conditioning_from")
        for other in rest:
            first = bench.add(how, **dict(zip(names, (first, other), strict=True)))
        return bench.sample(first)

    return build


def scheduled(bench: Bench) -> Output:
    return bench.sample(bench.add("PCLazyTextEncode", clip=bench.clip, text=bench.text))


def ranges(bench: Bench) -> Output:
    """A prompt that changes half way, with core's nodes."""
    parts = [
        bench.add("ConditioningSetTimestepRange", conditioning=bench.encode(text), start=start, end=start + 0.5)
        for text, start in (("a big circle at left", 0.0), ("a small circle at left", 0.5))
    ]
    return bench.sample(bench.add("ConditioningCombine", conditioning_1=parts[0], conditioning_2=parts[1]))


def with_lora(text: str, node: str = "PCLazyLoraLoader") -> Any:
    def load(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
        loaded = graph.add(node, model=model, clip=clip, text=text)
        return loaded[0], loaded[1]

    return load


def lora_after(text: str) -> tuple[Build, Build]:
    """LoRAs loaded after our patch, and the same with Infusion by hand."""

    def build(bench: Bench, oracle: bool = False) -> Output:
        model, clip = with_lora(text)(bench.graph, bench.model, bench.clip)
        positive, negative = (graphs.encode(bench.graph, clip, t) for t in (bench.text, ""))
        bench.model = model
        return bench.sample(positive, bench.reference(positive) if oracle else model, negative=negative)

    return build, lambda bench: build(bench, oracle=True)


HALF = "[<lora:test.safetensors:1:0>::0.5]"
LEFT, RIGHT = "MASK(0 0.5)", "(0.5 1)"
AFTER = lora_after(HALF)
PAIRS = {
    "an encode": Pair(node, twin=core("a big circle at left on pink")),
    "an encode with weights": Pair(node, "a (big {word}:1.3) at left", oracle=referred("3")),
    "a schedule": Pair(scheduled, "a [big:small:0.5] {word} at left", twin=ranges),
    "break": Pair(node, "a big {word} at left BREAK on pink", oracle=referred("3")),
    "break, the word last": Pair(node, "on pink BREAK a big {word} at left", oracle=referred("80")),
    "break, the word twice": Pair(node, "a big {word} BREAK a small {word}", oracle=referred("3 80")),
    "and": Pair(node, "a big {word} AND " + OTHER, twin=core("a big circle", OTHER)),
    "cat": Pair(node, OTHER + " CAT a big {word}", twin=core(OTHER, "a big circle", how="ConditioningConcat")),
    "cat, the word twice": Pair(node, "a big {word} CAT a small {word}", oracle=referred("3 80")),
    "average": Pair(node, "a big {word} AVG(0.5) a small {word}", oracle=referred("3")),
    "noise": Pair(node, "a big {word} NOISE(0.1, 4)", oracle=referred("3")),
    "couple, the word in the base": Pair(
        node, "a big {word} at left COUPLE(0.5 1) " + OTHER,
        oracle=referred("3", "a big circle at left COUPLE(0.5 1) " + OTHER),
    ),
    "couple, the word in a region": Pair(
        node, f"{LEFT} {OTHER} COUPLE{RIGHT} a big {{word}} on pink",
        oracle=referred("3", f"MASK{RIGHT} a big circle on pink COUPLE(0 0.5) {OTHER}"),
    ),
    "couple, the word in one region of all": Pair(
        node, OTHER + " FILL() COUPLE(0 1) a big {word} on pink", oracle=lambda bench: bench.sample(
            bench.encode("a big circle on pink"), bench.reference(bench.encode("a big circle on pink"))),
    ),
    "couple, the word in both": Pair(
        node, f"{LEFT} a big {{word}} COUPLE{RIGHT} a small {{word}} on teal",
        twin=lambda bench: bench.sample(
            encoded(bench, f"MASK{RIGHT} a small circle on teal COUPLE(0 0.5) a big circle")),
    ),
    "couple, the word in two regions": Pair(
        node, f"{OTHER} FILL() COUPLE(0 0.5) a big {{word}} COUPLE{RIGHT} a small {{word}} on teal",
        twin=lambda bench: bench.sample(encoded(bench, f"{LEFT} a big circle COUPLE{RIGHT} a small circle on teal")),
    ),
    "couple, the base with a strength": Pair(
        node,
        f"{LEFT} a big {{word}} on pink :0.7 COUPLE{RIGHT} {OTHER}",
        oracle=referred("3", f"{LEFT} a big circle on pink :0.7 COUPLE{RIGHT} {OTHER}"),
    ),
    # it scales the region's text, not what a concept adds to it
    "couple, a region with a strength": Pair(node, f"{LEFT} {OTHER} COUPLE{RIGHT} a big {{word}} on pink :0.7"),
    "loras scheduled, after our patch": Pair(AFTER[0], oracle=AFTER[1]),
    "loras scheduled, before our patch": Pair(
        lambda bench: bench.sample(encoded(bench)), before=with_lora(HALF), oracle=referred("3")
    ),
}  # fmt: skip
for style in ("A1111", "compel", "comfy++", "perp", "down_weight"):
    PAIRS[style] = Pair(node, f"STYLE({style}) a (big:1.2) {{word}} at (left:0.8)", oracle=referred("3"))


@pytest.mark.parametrize("pair", PAIRS)
def test_prompt_control(server: Server, pair: str) -> None:
    check(server, PAIRS[pair])

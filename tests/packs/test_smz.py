"""smZNodes beside Infusion: prompts parsed as A1111 and others do."""

from __future__ import annotations

import pytest

from comfyui_process.graph import Output
from comfyui_process.server import Server

from .trial import OTHER, PROMPT, Bench, Build, Pair, check

PACKS = ("ComfyUI_smZNodes",)
SIZES = {"width": 1024, "height": 1024, "crop_w": 0, "crop_h": 0, "target_width": 1024, "target_height": 1024}
OPTIONS = {
    "mean_normalization": True, "multi_conditioning": True, "use_old_emphasis_implementation": False,
    "with_SDXL": False, "ascore": 6.0, "text_g": "", "text_l": "", **SIZES,
}  # fmt: skip


def encoded(bench: Bench, parser: str, text: str | None = None, **options: object) -> Output:
    values = {**OPTIONS, **options}
    return bench.add("smZ CLIPTextEncode", clip=bench.clip, text=text or bench.text, parser=parser, **values)


def pair(parser: str, text: str = PROMPT, positions: str = "3", **options: object) -> Pair:
    """With Infusion by hand as the oracle."""

    def by_hand(bench: Bench) -> Output:
        positive = encoded(bench, parser, **options)
        return bench.sample(positive, bench.reference(positive, positions))

    return Pair(lambda bench: bench.sample(encoded(bench, parser, **options)), text, oracle=by_hand)


def both(parser: str) -> Build:
    """Two prompts at once, each by its own node, put together by core."""

    def build(bench: Bench) -> Output:
        parts = [encoded(bench, parser, text) for text in ("a big circle", OTHER)]
        return bench.sample(bench.add("ConditioningCombine", conditioning_1=parts[0], conditioning_2=parts[1]))

    return build


def together(parser: str, text: str) -> Pair:
    return Pair(lambda bench: bench.sample(encoded(bench, parser)), text)


PARSERS = ("comfy", "comfy++", "A1111", "full", "compel", "fixed attention")
PAIRS = {
    **{parser: pair(parser) for parser in PARSERS},
    **{f"{parser}, weights": pair(parser, "a (big:1.2) {word} at (left:0.8) on pink") for parser in PARSERS[:4]},
    "compel, weights": pair("compel", "a (big)1.2 {word} at (left)0.8 on pink"),
    "A1111, old emphasis": pair("A1111", use_old_emphasis_implementation=True),
    "A1111, no mean": pair("A1111", "a (big:1.2) {word} at left", mean_normalization=False),
    "A1111, two chunks": pair("A1111", "a big {word} BREAK a small {word}", "3 80"),
    "A1111, a schedule": together("A1111", "a [big:small:0.5] {word} at left on pink"),
    "comfy, and": Pair(
        lambda bench: bench.sample(encoded(bench, "comfy")), "a big {word} AND " + OTHER, twin=both("comfy")
    ),
    "A1111, and": together("A1111", "a big {word} AND " + OTHER),
    "A1111, and with weights": together("A1111", "a big {word} :0.8 AND " + OTHER + " :1.1"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_smz(server: Server, pair: str) -> None:
    check(server, PAIRS[pair])

"""Nodes that encode text in ways of their own: Advanced CLIP Text Encode, smZ's parsers, Inspire's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from comfyui_process.graph import Output
from comfyui_process.server import Server

from .trial import OTHER, PROMPT, Bench, Build, Pair, check

PACKS = ("ComfyUI_ADV_CLIP_emb", "ComfyUI-Inspire-Pack", "was-node-suite-comfyui")
WEIGHTED = "a (big:1.2) {word} at (left:0.8) on pink"


def encode(bench: Bench, name: str, **options: Any) -> Output:
    return bench.sample(bench.add(name, clip=bench.clip, text=bench.text, **options))


def by_hand(bench: Bench, name: str, **options: Any) -> Output:
    positive = bench.add(name, clip=bench.clip, text=bench.text, **options)
    return bench.sample(positive, bench.reference(positive))


def pair(name: str, text: str = PROMPT, **options: Any) -> Pair:
    return Pair(lambda b: encode(b, name, **options), text, oracle=lambda b: by_hand(b, name, **options))


def advanced(weights: str, text: str, normalization: str = "none") -> Pair:
    return pair("BNK_CLIPTextEncodeAdvanced", text, token_normalization=normalization, weight_interpretation=weights)


def core(text: str) -> Build:
    return lambda bench: bench.sample(bench.encode(text))


WAYS = ("comfy", "A1111", "compel", "comfy++", "down_weight")
INSPIRE = "CLIPTextEncodeWithWeight //Inspire"
PAIRS = {
    **{f"advanced, {way}": advanced(way, PROMPT) for way in WAYS},
    **{f"advanced, {way}, weights": advanced(way, WEIGHTED) for way in WAYS if way != "comfy++"},
    # the sum of several encodes: nobody can tell whose states these are
    "advanced, comfy++, weights": replace(advanced("comfy++", WEIGHTED), oracle=None, acts=False),
    "advanced, mean": advanced("A1111", WEIGHTED, "length+mean"),
    "advanced, a long prompt": advanced("comfy", PROMPT + ", gray" * 60),
    "inspire, weight 1": pair(INSPIRE, strength=1.0, add_weight=0.0),
    "inspire, weight 1.4": pair(INSPIRE, strength=1.4, add_weight=0.1),
    "inspire, region": Pair(
        lambda bench: bench.sample(
            bench.add("RegionalConditioningSimple //Inspire", clip=bench.clip, mask=bench.mask(0, 64), strength=1.0,
                      set_cond_area="default", prompt=bench.text)
        ),
        oracle=lambda bench: bench.sample(
            bench.add("RegionalConditioningSimple //Inspire", clip=bench.clip, mask=bench.mask(0, 64), strength=1.0,
                      set_cond_area="default", prompt=bench.text), bench.reference(bench.encode(bench.text))),
    ),
    "inspire, concat of two": Pair(
        lambda bench: bench.sample(bench.add(
            "ConditioningConcat", conditioning_to=bench.encode(OTHER),
            conditioning_from=bench.add(INSPIRE, clip=bench.clip, text=bench.text, strength=1.2, add_weight=0.0))),
    ),
    "was, an encode": Pair(
        lambda bench: bench.sample(bench.add(
            "CLIPTextEncode (NSP)", clip=bench.clip, text=bench.text, mode="Wildcards", noodle_key="__", seed=1)),
        twin=core("a big circle at left on pink"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_encoders(server: Server, pair: str) -> None:
    check(server, PAIRS[pair])

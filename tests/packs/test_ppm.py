"""ppm beside Infusion: negative weights (NegPip), attention couple, samplers, encoders."""

from __future__ import annotations

import pytest

from comfyui_process.graph import Graph, Output
from comfyui_process.server import Server
from tests.host import graphs

from .trial import OTHER, Bench, Build, Pair, check

PACKS = ("ComfyUI-ppm",)
INTERLEAVED = "7"  # the value of the word at 3, where keys and values alternate
BIG = "a big {word} on pink"


def negpip(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
    """In front of our patch."""
    made = graph.add("CLIPNegPip", model=model, clip=clip)
    return made[0], made[1]


def negpip_after(bench: Bench) -> Output:
    """After our patch."""
    model, clip = negpip(bench.graph, bench.model, bench.clip)
    positive, negative = (graphs.encode(bench.graph, clip, text) for text in (bench.text, "gray"))
    return bench.sample(positive, model, negative=negative)


def plain(bench: Bench) -> Output:
    return bench.sample(negative=bench.encode("gray"))


def by_hand(bench: Bench) -> Output:
    """NegPip before, Infusion by hand; where the word is negative, so is what is added to it."""
    scale = -1.0 if "(circle:-1)" in bench.text else 1.0
    model = bench.reference(bench.encode(bench.text), INTERLEAVED, scale)
    return bench.sample(model=model, negative=bench.encode("gray"))


def by_hand_alone(bench: Bench) -> Output:
    """The same where NegPip stands after our patch."""
    bench.model, bench.clip = negpip(bench.graph, bench.model, bench.clip)
    return by_hand(bench)


def couple(base: str | None, region: str | None, left: int = 64, strength: float = 1.0, oracle: str = "") -> Build:
    """Two prompts, None for the one with the word, beside each other; the base at the left, `left` wide.

    Args:
        base, region: texts.
        left: width of the base's part.
        strength: of the region.
        oracle: positions; the base's text has Infusion by hand.
    """

    def build(bench: Bench) -> Output:
        texts = [bench.encode(bench.text if text is None else text) for text in (base, region)]
        scaled = bench.add("ConditioningSetAreaStrength", conditioning=texts[1], strength=strength)
        model = bench.reference(texts[0], oracle) if oracle else bench.model
        model = bench.add(
            "AttentionCouplePPM", model=model, base_cond=texts[0], base_mask=bench.mask(0, left),
            cond_1=scaled, mask_1=bench.mask(left, 128 - left),
        )  # fmt: skip
        return bench.sample(texts[0], model)

    return build


def mirrored(positions: str = "3") -> Build:
    """The region's prompt as the base, with Infusion by hand, and the base's as a region."""

    def build(bench: Bench) -> Output:
        word, other = bench.encode(bench.text), bench.encode(OTHER)
        model = bench.add(
            "AttentionCouplePPM", model=bench.reference(word, positions), base_cond=word,
            base_mask=bench.mask(64, 64), cond_1=other, mask_1=bench.mask(0, 64),
        )  # fmt: skip
        return bench.sample(word, model)

    return build


def whole(bench: Bench) -> Output:
    """The region's prompt alone, which fills the picture."""
    return bench.sample(model=bench.reference(bench.encode(bench.text)))


def two(left: bool) -> Build:
    """Two prompts with the word beside each other, the base at the left or at the right."""

    def build(bench: Bench) -> Output:
        texts = [bench.encode(bench.text), bench.encode(bench.text.replace("big", "small").replace("pink", "teal"))]
        masks = [bench.mask(0, 64), bench.mask(64, 64)]
        (base, base_mask), (region, mask) = list(zip(texts, masks, strict=True))[:: 1 if left else -1]
        model = bench.add(
            "AttentionCouplePPM", model=bench.model, base_cond=base, base_mask=base_mask, cond_1=region, mask_1=mask
        )
        return bench.sample(base, model)

    return build


def couple_before(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
    """A couple in front of our patch, both prompts without the word."""
    masks = [graph.add("SolidMask", value=0.5, width=128, height=128) for _ in range(2)]
    made = graph.add(
        "AttentionCouplePPM", model=model, base_cond=graphs.encode(graph, clip, OTHER), base_mask=masks[0],
        cond_1=graphs.encode(graph, clip, OTHER), mask_1=masks[1],
    )  # fmt: skip
    return made, clip


def custom(name: str, **options: object) -> Build:
    """SamplerCustom with one of the pack's samplers."""

    def build(bench: Bench, model: Output | None = None) -> Output:
        chosen = bench.add(name, **{k: bench.model if v is MODEL else v for k, v in options.items()})
        return bench.add(
            "SamplerCustom", model=model or bench.model, add_noise=True, noise_seed=3, cfg=1.5,
            positive=bench.encode(bench.text), negative=bench.encode(""), sampler=chosen,
            sigmas=bench.add("BasicScheduler", model=bench.model, scheduler="normal", steps=4, denoise=1.0),
            latent_image=bench.add("EmptyLatentImage", width=128, height=128, batch_size=1),
        )[0]  # fmt: skip

    return build


def sampler(name: str, **options: object) -> Pair:
    build = custom(name, **options)
    return Pair(build, oracle=lambda bench: build(bench, bench.reference(bench.encode(bench.text))))  # type: ignore[call-arg]


def encoder(name: str, text: str, **options: object) -> Pair:
    """One of the pack's encode nodes."""

    def encoded(bench: Bench) -> Output:
        return bench.add(name, clip=bench.clip, text=bench.text, **options)

    def by_hand(bench: Bench) -> Output:
        positive = encoded(bench)
        return bench.sample(positive, bench.reference(positive))

    return Pair(lambda bench: bench.sample(encoded(bench)), text, oracle=by_hand)


MODEL = object()
DYN = {"eta": 1.0, "s_dy_pow": 2, "s_extra_steps": False}
PAIRS = {
    "negpip before": Pair(plain, before=negpip, oracle=by_hand),
    "negpip before, negative weights": Pair(plain, "a big {word} at (left:-1) on pink", negpip, by_hand),
    "negpip before, the word negative": Pair(plain, "a big ({word}:-1) at left on pink", negpip, by_hand),
    "negpip after": Pair(negpip_after, oracle=by_hand_alone),
    "negpip after, negative weights": Pair(negpip_after, "a big {word} at (left:-1)", oracle=by_hand_alone),
    "negpip after, the word negative": Pair(negpip_after, "a big ({word}:-1) at left", oracle=by_hand_alone),
    "couple, the word in the base": Pair(couple(None, OTHER), BIG, oracle=couple(None, OTHER, oracle="3")),
    "couple, the word in the region": Pair(couple(OTHER, None), BIG, oracle=mirrored()),
    "couple, the word in one region of all": Pair(couple(OTHER, None, left=0), BIG, oracle=whole),
    "couple, the word in both": Pair(two(left=True), BIG, twin=two(left=False)),
    "couple, a region with a strength": Pair(couple(OTHER, None, strength=0.7), BIG),
    "couple before our patch": Pair(lambda bench: bench.sample(bench.encode(bench.text)), BIG, couple_before),
    "negpip and couple, the word in the base": Pair(
        couple(None, OTHER), "a big {word} on (pink:-1)", negpip, couple(None, OTHER, oracle=INTERLEAVED)
    ),
    "negpip and couple, the word in the region": Pair(
        couple(OTHER, None), "a big {word} on (pink:-1)", negpip, mirrored(INTERLEAVED)
    ),
    "cfg++ sampler": sampler("CFGPPSamplerSelect", sampler_name="euler_ancestral_cfg_pp", eta=1.0, s_gamma_start=0.0,
                             s_gamma_end=1.0, s_extra_steps=False),
    "dynamic sampler": sampler("DynSamplerSelect", sampler_name="euler_ancestral_dy", **DYN),
    "an encode with BREAK": encoder("CLIPTextEncodeBREAK", "a big {word} BREAK on pink"),
    "an encode with inverted weights": encoder(
        "CLIPTextEncodeInvertWeights", "a big {word} (on:0.9) pink", invert_special_tokens=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_ppm(server: Server, pair: str) -> None:
    check(server, PAIRS[pair])

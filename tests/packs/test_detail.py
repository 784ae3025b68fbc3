"""Impact's and Inspire's detailers, wildcards, samplers and regions."""

from __future__ import annotations

import pytest

from comfyui_process.graph import Output
from comfyui_process.server import Server
from tests.host import graphs

from .trial import OTHER, Bench, Build, Pair, check

PACKS = ("ComfyUI-Impact-Pack", "ComfyUI-Inspire-Pack", "ComfyUI_ADV_CLIP_emb")
RUN = {"seed": 3, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
LORA = {"Select to add LoRA": "Select the LoRA to add to the text"}
MENUS = {**LORA, "Select to add Wildcard": "Select the Wildcard to add to the text"}


def detailed(bench: Bench, model: Output, positive: Output, wildcard: str = "") -> Output:
    """A picture with its right half drawn again."""
    segments = bench.add(
        "MaskToSEGS", mask=bench.mask(64, 64), combined=False, crop_factor=1.0, bbox_fill=False, drop_size=4,
        contour_fill=False,
    )  # fmt: skip
    image = bench.add(
        "DetailerForEach", image=bench.image(), segs=segments, model=model, clip=bench.clip, vae=bench.vae,
        guide_size=128, guide_size_for=True, max_size=128, positive=positive, negative=bench.encode(""), denoise=0.7,
        feather=0, noise_mask=True, force_inpaint=True, wildcard=wildcard, cycle=1, **RUN,
    )  # fmt: skip
    return bench.latent_of(image)


def detail(bench: Bench) -> Output:
    return detailed(bench, bench.model, bench.encode(bench.text))


def detail_by_hand(bench: Bench) -> Output:
    positive = bench.encode(bench.text)
    return detailed(bench, bench.reference(positive), positive)


def wild_detail(bench: Bench) -> Output:
    """The detailer's own prompt has the word."""
    return detailed(bench, bench.model, bench.encode(OTHER), bench.text)


def wild_detail_by_hand(bench: Bench) -> Output:
    return detailed(
        bench, bench.reference(bench.encode("a big circle at left on pink")), bench.encode(OTHER), bench.text
    )


def wildcards(text: str, name: str = "ImpactWildcardEncode", **options: object) -> Build:
    """A prompt with choices, encoded with the model and CLIP that come out."""

    def build(bench: Bench) -> Output:
        made = bench.add(
            name, model=bench.model, clip=bench.clip, wildcard_text=text.format(bench.text),
            populated_text=text.format(bench.text), seed=1, **{"mode": True, **MENUS, **options},
        )  # fmt: skip
        return bench.sample(made[2], made[0])

    return build


def core(text: str) -> Build:
    return lambda bench: bench.sample(bench.encode(text))


def with_lora(bench: Bench) -> Output:
    loaded = bench.add(
        "LoraLoader", model=bench.model, clip=bench.clip, lora_name="test.safetensors", strength_model=0.7,
        strength_clip=0.7,
    )  # fmt: skip
    return bench.sample(graphs.encode(bench.graph, loaded[1], bench.text), loaded[0])


def basic_pipe(bench: Bench, positive: Output, model: Output | None = None) -> Output:
    return bench.add(
        "ToBasicPipe", model=model or bench.model, clip=bench.clip, vae=bench.vae, positive=positive,
        negative=bench.encode(""),
    )  # fmt: skip


def piped(bench: Bench, model: Output | None = None) -> Output:
    pipe, latent = basic_pipe(bench, bench.encode(bench.text), model), blank(bench)
    return bench.add("ImpactKSamplerBasicPipe", basic_pipe=pipe, latent_image=latent, denoise=1.0, **RUN)[1]


def inspire(bench: Bench, model: Output | None = None) -> Output:
    """Inspire's KSampler, a batch as A1111 draws it, a variation."""
    return bench.add(
        "KSampler //Inspire", model=model or bench.model, positive=bench.encode(bench.text),
        negative=bench.encode(""), latent_image=blank(bench, 2), denoise=1.0, noise_mode="CPU",
        batch_seed_mode="incremental", variation_seed=5, variation_strength=0.2, **RUN,
    )  # fmt: skip


def blank(bench: Bench, pictures: int = 1) -> Output:
    return bench.add("EmptyLatentImage", width=128, height=128, batch_size=pictures)


def regions(bench: Bench, model: Output | None = None) -> Output:
    """A base prompt, and the one with the word at the left, each by a sampler of its own."""
    base = basic_pipe(bench, bench.encode(OTHER), model)
    region = bench.add(
        "RegionalPromptSimple //Inspire", basic_pipe=base, mask=bench.mask(0, 64), cfg=3.0, sampler_name="euler",
        scheduler="normal", wildcard_prompt=bench.text, controlnet_in_pipe=False, sigma_factor=1.0,
    )  # fmt: skip
    sampler = bench.add(
        "KSamplerAdvancedProvider", cfg=3.0, sampler_name="euler", scheduler="normal", basic_pipe=base, sigma_factor=1.0
    )
    return bench.add(
        "RegionalSampler", seed=3, seed_2nd=0, seed_2nd_mode="ignore", steps=4, base_only_steps=1, denoise=1.0,
        samples=blank(bench), base_sampler=sampler, regional_prompts=region, overlap_factor=10, restore_latent=True,
        additional_mode="ratio between", additional_sampler="AUTO", additional_sigma_ratio=0.3,
    )  # fmt: skip


def by_hand(build: Build) -> Build:
    return lambda bench: build(bench, bench.reference(bench.encode(bench.text)))  # type: ignore[call-arg]


ADVANCED = {"token_normalization": "none", "weight_interpretation": "A1111", "mode": "fixed"}
PAIRS = {
    # pictures pass through 8 bits nowhere here, but through the autoencoder
    "a detailer": Pair(detail, oracle=detail_by_hand, zero=1e-3, near=1e-2),
    "a detailer's own prompt": Pair(wild_detail, oracle=wild_detail_by_hand, zero=1e-3, near=1e-2),
    "wildcards": Pair(wildcards("{}"), twin=core("a big circle at left on pink")),
    "wildcards with a LoRA": Pair(wildcards("{} <lora:test:0.7>"), twin=with_lora),
    "wildcards with BREAK": Pair(
        wildcards("a big triangle BREAK {}"), twin=lambda bench: bench.sample(bench.add(
            "ConditioningConcat", conditioning_to=bench.encode("a big triangle"),
            conditioning_from=bench.encode(bench.text))),
    ),
    "a basic pipe": Pair(piped, oracle=by_hand(piped)),
    "inspire's sampler": Pair(inspire, oracle=by_hand(inspire)),
    "inspire's wildcards": Pair(wildcards("{}", "WildcardEncode //Inspire", **ADVANCED)),
    "regions, each by a sampler": Pair(regions, oracle=by_hand(regions)),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_detail(server: Server, pair: str) -> None:
    check(server, PAIRS[pair])

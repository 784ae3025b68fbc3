"""The promises, on the real network: nothing else changes, and the fused path equals explicit maps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.sampling import Picture, Sampler, SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.errors import InfusionError
from infusion_core.residuals import zero_residual
from infusion_core.schedule import NEVER, Curve, Window

from . import explicit

WORDS = {"a": "circle", "b": "square", "c": "triangle"}
PROMPT = "a small circle at the left and a circle and a big square and a triangle at the right"


def concept(model, word, layout="block", size=0.3, bins=1, seed=0):
    residual = zero_residual(model.denoiser.base, word, layout, bins, parts=3)
    generator = torch.Generator().manual_seed(seed)
    for tensor in residual.tensors.values():
        tensor.normal_(0, size, generator=generator)
    return residual


def loaded(residual, strength=1.0, name="a", **options):
    return LoadedConcept(name, residual, strength, **options)


def run(model, prompt, concepts, settings, count=2):
    encoded = model.text.encode(prompt, {c.name: c.residual.word for c in concepts})
    negative = model.text.encode("").conditioning
    sampler = Sampler(model.denoiser, model.scheduler, [Picture(encoded, negative, concepts)], settings)
    *_, last = sampler.run(model.noise(count, 7))
    return last.latents


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("base_latent", ["shared", "own"])
@pytest.mark.parametrize("layout", ["block", "layer", "value", "parts"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_fused_path_equals_explicit_maps(tinyworld, base_latent, layout, count):
    concepts = [
        LoadedConcept(word, concept(tinyworld, word, layout, 0.1, bins=2, seed=i), 0.7 + i / 4)
        for i, word in enumerate(list(WORDS.values())[:count])
    ]
    settings = SampleSettings(2, 3.0, base_latent)
    fused = run(tinyworld, PROMPT, concepts, settings)
    encoded = tinyworld.text.encode(PROMPT, dict(list(WORDS.items())[:count]))
    with torch.no_grad():
        slow = explicit.sample(
            tinyworld, encoded.conditioning.context, tinyworld.text.encode("").conditioning.context,
            tinyworld.noise(2, 7), [(c.residual, c.strength) for c in concepts], encoded.spans, 2, 3.0, base_latent,
        )  # fmt: skip
    assert relative(fused, slow) < 5e-5  # what float32 leaves on any processor
    assert relative(fused, run(tinyworld, PROMPT, [], settings)) > 1e-3  # the residual did something


@pytest.mark.parametrize("base_latent", ["shared", "own"])
def test_maps_that_are_replaced_late_are_those_of_a_base_stream_that_came_so_far(tinyworld, base_latent):
    late = LoadedConcept("a", concept(tinyworld, "circle", size=0.1, bins=2), replacement=Window(0.5, 0.75))
    fused = run(tinyworld, PROMPT, [late], SampleSettings(4, 3.0, base_latent))
    encoded = tinyworld.text.encode(PROMPT, {"a": "circle"})
    with torch.no_grad():
        slow = explicit.sample(
            tinyworld, encoded.conditioning.context, tinyworld.text.encode("").conditioning.context,
            tinyworld.noise(2, 7), [(late.residual, 1.0)], encoded.spans, 4, 3.0, base_latent, window=(0.5, 0.75),
        )  # fmt: skip
    assert relative(fused, slow) < 5e-5


@pytest.mark.parametrize("base_latent", ["shared", "own"])
def test_strength_zero_and_absent_words_change_nothing(tinyworld, base_latent):
    settings = SampleSettings(3, 4.0, base_latent)
    base = run(tinyworld, PROMPT, [], settings)
    assert torch.equal(run(tinyworld, PROMPT, [loaded(concept(tinyworld, "circle"), 0.0)], settings), base)
    other = "a big diamond at the top"
    absent = run(tinyworld, other, [loaded(concept(tinyworld, "circle"))], settings)
    assert torch.equal(absent, run(tinyworld, other, [], settings))


def test_without_concepts_it_is_diffusers_own_pipeline(sd1):
    from diffusers import StableDiffusionPipeline

    ours = run(sd1, "a photo of the beach", [], SampleSettings(3, 5.0))
    encoder = sd1.text.encoders[0]
    pipeline = StableDiffusionPipeline(
        sd1.vae, encoder.model, encoder.tokenizer._tokenizer, sd1.denoiser.unet, sd1.scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a photo of the beach", num_inference_steps=3, guidance_scale=5.0, num_images_per_prompt=2,
        latents=sd1.noise(2, 7), output_type="latent",
    ).images  # fmt: skip
    assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize("base_latent", ["shared", "own"])
def test_a_zero_residual_with_replacement_is_the_base_model(tinyworld, base_latent):
    zero = zero_residual(tinyworld.denoiser.base, "circle")
    settings = SampleSettings(3, 4.0, base_latent)
    assert relative(run(tinyworld, PROMPT, [loaded(zero)], settings), run(tinyworld, PROMPT, [], settings)) < 1e-5


def test_pictures_of_a_batch_do_not_depend_on_each_other(tinyworld):
    settings = SampleSettings(2, 4.0)
    strong = [loaded(concept(tinyworld, "circle"))]
    together = run(tinyworld, PROMPT, strong, settings, count=3)
    alone = run(tinyworld, PROMPT, strong, settings, count=1)
    assert relative(together[:1], alone) < 1e-5


@pytest.mark.parametrize("base_latent", ["shared", "own"])
def test_mixed_precision_draws_nearly_the_same(tinyworld, base_latent):
    concepts = [loaded(concept(tinyworld, "circle"))]
    exact, mixed = (
        run(tinyworld, PROMPT, concepts, SampleSettings(3, 3.0, base_latent, compute=c)) for c in (None, torch.bfloat16)
    )
    assert mixed.dtype == torch.float32
    assert 1e-5 < relative(mixed, exact) < 0.05


class Count:
    """Counts the rows the network is called with."""

    def __init__(self, unet):
        self.rows = []
        self.handle = unet.register_forward_pre_hook(lambda _, args: self.rows.append(len(args[0])))


@pytest.mark.parametrize(
    ("settings", "windows", "rows"),
    [
        (SampleSettings(2, 4.0), {}, [3, 3]),
        (SampleSettings(2, 4.0, "own"), {}, [4, 4]),
        (SampleSettings(2, 4.0), {"replacement": Window(0, 0.5)}, [3, 2]),
        (SampleSettings(2, 4.0, "own"), {"replacement": Window(0, 0.5)}, [4, 2]),
        (SampleSettings(2, 4.0), {"window": Window(0.5, 1)}, [2, 3]),
        (SampleSettings(2, 4.0), {"curve": Curve(((0, 0), (0.1, 0), (0.1, 1)))}, [2, 3]),
        (SampleSettings(2, 1.0), {}, [2, 2]),
        (SampleSettings(2, 4.0, "own", replace_unconditional=True), {}, [4, 4]),
    ],
)
def test_cost_in_rows(tinyworld, settings, windows, rows):
    count = Count(tinyworld.denoiser.unet)
    try:
        run(tinyworld, PROMPT, [loaded(concept(tinyworld, "circle"), **windows)], settings, count=1)
    finally:
        count.handle.remove()
    assert count.rows == rows


def test_no_word_means_no_extra_rows(tinyworld):
    count = Count(tinyworld.denoiser.unet)
    try:
        run(tinyworld, "a big diamond", [loaded(concept(tinyworld, "circle"))], SampleSettings(2, 4.0), count=1)
    finally:
        count.handle.remove()
    assert count.rows == [2, 2]


def test_processors_are_restored_even_after_an_error(tinyworld):
    before = dict(tinyworld.denoiser.unet.attn_processors)
    broken = concept(tinyworld, "circle")
    for tensor in broken.tensors.values():
        tensor.resize_(1, 1, 5)
    with pytest.raises(Exception, match=r"made for|shape|size"):
        run(tinyworld, PROMPT, [loaded(broken)], SampleSettings(1, 4.0))
    assert tinyworld.denoiser.unet.attn_processors == before


def trained_so(residual, replace_maps):
    return replace(residual, training={"replace_maps": "true" if replace_maps else "false"})


@pytest.mark.parametrize("base_latent", ["shared", "own"])
def test_maps_are_replaced_as_the_concept_was_trained(tinyworld, base_latent):
    settings, residual = SampleSettings(2, 4.0, base_latent), concept(tinyworld, "circle")
    with_maps, without = (run(tinyworld, PROMPT, [loaded(trained_so(residual, r))], settings) for r in (True, False))
    assert torch.equal(with_maps, run(tinyworld, PROMPT, [loaded(residual)], settings))
    assert torch.equal(without, run(tinyworld, PROMPT, [loaded(residual, replacement=NEVER)], settings))
    assert relative(without, with_maps) > 1e-3
    overruled = loaded(trained_so(residual, False), replacement=Window())
    assert torch.equal(run(tinyworld, PROMPT, [overruled], settings), with_maps)


def test_in_a_stack_of_both_kinds_one_that_wants_maps_is_enough(tinyworld):
    one, other = concept(tinyworld, "circle"), concept(tinyworld, "square", seed=1)
    mixed = [loaded(trained_so(one, True), name="a"), loaded(trained_so(other, False), name="b")]
    both = [loaded(one, name="a"), loaded(other, name="b")]
    settings = SampleSettings(2, 4.0)
    assert torch.equal(run(tinyworld, PROMPT, mixed, settings), run(tinyworld, PROMPT, both, settings))
    named_alone = run(tinyworld, "a big square", mixed, settings)
    assert torch.equal(named_alone, run(tinyworld, "a big square", [replace(both[1], replacement=NEVER)], settings))


def test_blocks_scale_the_residual(tinyworld):
    residual, settings = concept(tinyworld, "circle"), SampleSettings(1, 4.0)
    halved = replace(residual, tensors={k: t * (0.5 if k == "mid" else 2.0) for k, t in residual.tensors.items()})
    by_hand = run(tinyworld, PROMPT, [loaded(halved)], settings)
    by_block = run(tinyworld, PROMPT, [loaded(residual, 2.0, blocks={"mid": 0.25})], settings)
    assert relative(by_block, by_hand) < 1e-5


@pytest.mark.parametrize("base_latent", ["shared", "own"])
def test_a_curve_scales_the_residual_step_by_step(tinyworld, base_latent):
    """Two steps fall into the two timestep bins of a residual, so the scale can be put into its tensors instead."""
    residual, settings = concept(tinyworld, "circle", bins=2), SampleSettings(2, 4.0, base_latent)
    scale = torch.tensor([0.3, 1.0])[:, None, None]  # bin 0 is the last step's
    by_hand = replace(residual, tensors={k: t * scale for k, t in residual.tensors.items()})
    curve = Curve(((0.0, 1.0), (1.0, -0.4)))
    drawn = run(tinyworld, PROMPT, [loaded(residual, curve=curve)], settings)
    assert relative(drawn, run(tinyworld, PROMPT, [loaded(by_hand)], settings)) < 1e-5
    plain = run(tinyworld, PROMPT, [loaded(residual)], settings)
    assert relative(drawn, plain) > 1e-3
    assert torch.equal(run(tinyworld, PROMPT, [loaded(residual, curve=Curve(((0.5, 1.0),)))], settings), plain)


def test_an_unknown_base_latent_and_no_steps_are_refused():
    with pytest.raises(InfusionError, match="unknown base latent 'mine'; choose shared or own"):
        SampleSettings(2, 4.0, "mine")
    with pytest.raises(InfusionError, match="steps must be at least 1"):
        SampleSettings(0)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_guidance_is_a_number_of_use(guidance):
    with pytest.raises(InfusionError, match="the guidance must be a number up to 1000, got"):
        SampleSettings(2, guidance)


def test_more_steps_than_the_model_has_are_refused(tinyworld):
    with pytest.raises(InfusionError, match="1001 steps are more than the 1000 this model has; ask for fewer"):
        run(tinyworld, PROMPT, [], SampleSettings(1001))


def test_steps_beyond_the_noise_levels_are_refused(tinyworld):
    """Stable Diffusion's own scheduler starts one step higher: of 1000 steps the first would be the 1001st level."""
    config = {**tinyworld.scheduler.config, "timestep_spacing": "leading", "steps_offset": 1}
    model = replace(tinyworld, scheduler=type(tinyworld.scheduler).from_config(config))
    encoded = model.text.encode(PROMPT)
    picture = Picture(encoded, encoded.conditioning, [])
    with pytest.raises(InfusionError, match="1000 steps reach beyond the 1000 noise levels of this model; ask for few"):
        next(Sampler(model.denoiser, model.scheduler, [picture], SampleSettings(1000)).moments(1))
    next(Sampler(model.denoiser, model.scheduler, [picture], SampleSettings(999)).moments(1))


def test_long_prompts_keep_the_word_in_the_second_chunk(tinyworld):
    long = "a big square and " * 20 + "a circle"
    encoded = tinyworld.text.encode(long, {"a": "circle"})
    assert encoded.conditioning.context.shape[1] == 154
    assert encoded.spans == (((77 + 1 + 81 - 75,),),)
    residual = concept(tinyworld, "circle")
    pictures = draw(tinyworld, long, [loaded(residual)], 1, 0, SampleSettings(1, 4.0), negative="a circle")
    plain = draw(tinyworld, long, [], 1, 0, SampleSettings(1, 4.0), negative="a circle")
    assert pictures[0].tobytes() != plain[0].tobytes()

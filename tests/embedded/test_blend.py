"""DreamBlend on real networks: what must not change, and the fused path against maps written out."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from infusion_core.concepts import LoadedConcept
from infusion_core.dreamblend import BlendSettings
from infusion_core.embedded.blend import BlendSampler
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import Picture, Sampler, SampleSettings
from infusion_core.embedded.unet import UNetDenoiser
from infusion_core.errors import InfusionError
from infusion_core.residuals import zero_residual
from infusion_core.schedule import Window

from . import explicit_blend
from .factories import save_model

SETTINGS = SampleSettings(4, 3.0)
PROMPT = "a photo of a dog on the beach"


def tuned(model, seed, size=0.1):
    """A copy whose cross-attention, self-attention and text encoder are not the model's: as two LoRA files make it."""
    generator = torch.Generator().manual_seed(seed)
    unet = copy.deepcopy(model.denoiser.unet)
    text = copy.deepcopy(model.text)
    networks = [unet, *(encoder.model for encoder in text.encoders)]
    with torch.no_grad():
        for network in networks:
            for name, weight in network.named_parameters():
                if any(part in name for part in ("to_q.", "to_k.", "q_proj.weight", "v_proj.weight")):
                    weight += size * weight.std() * torch.randn(weight.shape, generator=generator)
    denoiser = UNetDenoiser(unet, model.denoiser.sigmas, model.denoiser.prediction)
    return replace(model, denoiser=denoiser, text=text)


def precise(model):
    """The model in double precision: the sign of an absolute difference is a matter of luck where it is nearly 0."""
    for network in (model.denoiser.unet, *(encoder.model for encoder in model.text.encoders)):
        network.double()
    return model


def sampler(model, sampling=SETTINGS, prompt=PROMPT, concepts=()):
    encoded = model.text.encode(prompt, {c.name: c.residual.word for c in concepts})
    negative = model.text.encode("").conditioning
    return Sampler(model.denoiser, copy.deepcopy(model.scheduler), [Picture(encoded, negative, concepts)], sampling)


def alone(model, noise, **options):
    *_, last = sampler(model, **options).run(noise)
    return last.latents


def blended(early, late, noise, settings, **options):
    *_, last = BlendSampler(sampler(early, **options), sampler(late, **options), settings).run(noise)
    return last.latents, last.reference


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def base(request, tmp_path_factory):
    widths = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
    folder = save_model(tmp_path_factory.mktemp("blend") / request.param, request.param, widths[request.param])
    return load_model(str(folder), "cpu")


@pytest.mark.parametrize(
    "settings",
    [
        BlendSettings("gradient", 0.1),
        BlendSettings("gradient", 30.0, normalise=False, gradient_steps=2),
        BlendSettings("gradient", 0.1, "squared", where=("up",)),
        BlendSettings("replacement", 1.0),
        BlendSettings("replacement", 0.4, every=2, where=("down.1", "mid"), window=Window(0.0, 0.6)),
    ],
)
def test_the_fused_path_equals_explicit_maps(base, settings):
    early, late = precise(tuned(base, 1)), precise(tuned(base, 2))
    noise = base.noise(2, 7).double()
    fused, reference = blended(early, late, noise, settings)
    blocks = {"up": "up_blocks", "down.1": "down_blocks.1", "mid": "mid_block"}
    levels = tuple(blocks[name] for name in settings.where)
    slow = explicit_blend.sample(early, late, PROMPT, noise, 4, 3.0, settings, levels)
    assert relative(fused, slow) < 1e-6
    assert relative(fused, alone(late, noise)) > 1e-4  # and it does something
    if settings.window == Window():
        assert torch.equal(reference, alone(early, noise))  # G's own picture, of its own trajectory


@pytest.mark.parametrize("mode", ["gradient", "replacement"])
def test_alpha_0_is_the_late_model_bit_for_bit(tinyworld, mode):
    early, late, noise = tuned(tinyworld, 1), tuned(tinyworld, 2), tinyworld.noise(2, 7)
    prompt = "a photo of a circle"
    out, _ = blended(early, late, noise, BlendSettings(mode, 0.0), prompt=prompt)
    assert torch.equal(out, alone(late, noise, prompt=prompt))


@pytest.mark.parametrize("settings", [BlendSettings(alpha=5.0), BlendSettings(alpha=1e3, normalise=False)])
def test_a_model_that_guides_itself_by_the_gradient_changes_nothing(base, settings):
    model, noise = tuned(base, 1), base.noise(2, 7)
    out, _ = blended(model, model, noise, settings)
    assert torch.equal(out, alone(model, noise))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_a_models_own_maps_change_nothing(base, alpha):
    model, noise = tuned(base, 1), base.noise(2, 7)
    out, _ = blended(model, model, noise, BlendSettings("replacement", alpha))
    assert relative(out, alone(model, noise)) < 1e-5


def test_nothing_is_computed_once_nothing_is_guided(tinyworld):
    early, late, noise = tuned(tinyworld, 1), tuned(tinyworld, 2), tinyworld.noise(1, 7)
    passes = {"early": 0, "late": 0}
    for name, model in (("early", early), ("late", late)):
        forward = model.denoiser.forward

        def counted(*args, name=name, forward=forward):
            passes[name] += 1
            return forward(*args)

        model.denoiser.forward = counted
    settings = BlendSettings(alpha=0.1, gradient_steps=2, every=2, window=Window(0.0, 0.5))
    blended(early, late, noise, settings, sampling=SampleSettings(8, 3.0), prompt="a photo of a circle")
    assert passes == {"early": 3, "late": 8 + 2 * 2}  # guided: steps 0 and 2


def test_a_concept_acts_on_the_late_model_as_it_does_without_guidance(tinyworld):
    late, noise = tuned(tinyworld, 2), tinyworld.noise(1, 7)
    residual = zero_residual(tinyworld.denoiser.base, "circle", "layer", bins=2)  # its maps are replaced throughout
    for tensor in residual.tensors.values():
        tensor.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
    concept = LoadedConcept("mine", residual)
    prompt = "a photo of a circle"
    plain, own = sampler(late, prompt=prompt), alone(late, noise, prompt=prompt, concepts=[concept])

    def with_concept(settings):
        *_, last = BlendSampler(plain, sampler(late, prompt=prompt, concepts=[concept]), settings).run(noise)
        return last.latents

    assert torch.equal(with_concept(BlendSettings(alpha=0.0)), own)
    assert (
        relative(with_concept(BlendSettings(alpha=1e-5)), own) < 0.01 < relative(alone(late, noise, prompt=prompt), own)
    )
    # A base stream that follows its own trajectory is a model G whose weights are E's.
    twin = alone(late, noise, prompt=prompt, concepts=[concept], sampling=replace(SETTINGS, base_latent="own"))
    assert relative(with_concept(BlendSettings("replacement", 1.0)), twin) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_half_precision_are_guided_as_in_full(sd1, dtype):
    early, late = tuned(sd1, 1), tuned(sd1, 2)
    noise, settings = sd1.noise(1, 7), BlendSettings(alpha=0.1, window=Window(0.0, 0.2))
    one_step = SampleSettings(4, 1.0)
    whole, _ = blended(early, late, noise, settings, sampling=one_step)
    plain = alone(late, noise, sampling=one_step)
    for model in (early, late):
        for network in (model.denoiser.unet, *(encoder.model for encoder in model.text.encoders)):
            network.to(dtype)
    half, _ = blended(early, late, noise, settings, sampling=one_step)
    half_plain = alone(late, noise, sampling=one_step)
    move, half_move = (whole - plain).flatten(), (half - half_plain).float().flatten()
    assert torch.nn.functional.cosine_similarity(move, half_move, dim=0) > 0.7


def test_a_base_latent_of_its_own_is_refused(sd1):
    own = replace(SETTINGS, base_latent="own")
    with pytest.raises(InfusionError, match="guidance takes the base latent 'shared' only; leave 'own' out"):
        BlendSampler(sampler(sd1, own), sampler(sd1, own), BlendSettings())


def test_models_of_different_kinds_are_refused(tinyworld, sd1):
    with pytest.raises(InfusionError, match="of different kinds; blend two models trained from the same base"):
        BlendSampler(sampler(sd1), sampler(tinyworld, prompt="a photo of a circle"), BlendSettings())


def test_runs_of_different_length_are_refused(sd1):
    with pytest.raises(InfusionError, match="must draw in equally many steps"):
        BlendSampler(sampler(sd1, SampleSettings(3)), sampler(sd1, SampleSettings(4)), BlendSettings())

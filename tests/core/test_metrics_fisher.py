from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from infusion_core.attention import Plan, SuppliedMaps
from infusion_core.denoiser import Conditioning, EncodedPrompt
from infusion_core.errors import InfusionError
from infusion_core.injection import inject
from infusion_core.metrics.fisher import DenoiserPredictor, fisher_divergence
from infusion_core.metrics.interval import bootstrap_interval
from infusion_core.noise import target
from infusion_core.readers import Recorder
from infusion_core.schedule import NEVER

from . import toy

NAMING, OTHER = toy.prompts(2), toy.prompts(3, spans=())


class Spy:
    """A predictor that says a function of sigma and notes what it was asked."""

    def __init__(self, says=lambda sigma: 0.0) -> None:
        self.says, self.asked = says, []

    def __call__(self, noised: Tensor, sigma: Tensor, prompt: int) -> Tensor:
        self.asked += [(x.clone(), float(s), prompt) for x, s in zip(noised, sigma, strict=True)]
        return torch.stack([torch.full_like(x, self.says(s)) for x, s in zip(noised, sigma, strict=True)])


def test_the_norm_is_half_the_squared_sum_over_the_latent():
    sigmas = toy.ToyDenoiser().sigmas
    found = fisher_divergence(Spy(), Spy(lambda _: 0.5), toy.latents(), 1, sigmas, draws=4)
    assert found.elements == 16
    assert found.values.tolist() == [0.5 * 0.25 * 16] * 4
    assert (found.interval.mean, found.interval.low, found.interval.high) == (2.0, 2.0, 2.0)


def test_timesteps_are_uniform_and_latents_noised_to_their_level():
    sigmas, latents = toy.ToyDenoiser().sigmas, toy.latents()
    base, custom = Spy(), Spy()
    found = fisher_divergence(base, custom, latents, 3, sigmas, draws=300, batch=7)
    assert (found.times * 10 // 1000).bincount().tolist() == [30] * 10
    assert stats.kstest(found.times / 1000, "uniform").pvalue > 0.9
    assert found.prompts.bincount().tolist() == [100] * 3
    assert all(torch.equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(base.asked, custom.asked, strict=True))
    noises = [min(((x - z) / s).square().mean().item() for z in latents) for x, s, _ in base.asked]
    assert 0.9 < sum(noises) / len(noises) < 1.05


def test_pairs_of_image_and_caption_stay_together():
    latents = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 4, 4) * 1e6  # far beyond any noise
    spy = Spy()
    fisher_divergence(spy, Spy(), latents, 5, toy.ToyDenoiser().sigmas, draws=40, paired=True)
    assert {(round(x.mean().item() / 1e6), prompt) for x, _, prompt in spy.asked} == {(i, i) for i in range(5)}
    mixed = Spy()
    fisher_divergence(mixed, Spy(), latents, 5, toy.ToyDenoiser().sigmas, draws=40)
    assert any(round(x.mean().item() / 1e6) != prompt for x, _, prompt in mixed.asked)
    with pytest.raises(InfusionError, match="4 captions for 5 images"):
        fisher_divergence(spy, Spy(), latents, 4, toy.ToyDenoiser().sigmas, draws=40, paired=True)


def test_divergence_of_two_networks_is_that_of_a_loop():
    one, two = toy.ToyDenoiser(), toy.ToyDenoiser()
    two.leave.weight.data += 0.3
    base, custom = DenoiserPredictor(one, OTHER), DenoiserPredictor(two, OTHER)
    spy = Spy()
    fisher_divergence(spy, Spy(), toy.latents(), 3, one.sigmas, draws=10, seed=4)
    expected = []
    for x, s, prompt in spy.asked:
        sigma, conditioning = torch.tensor([s]), OTHER[prompt].conditioning
        said = [d.predict(x[None], sigma, conditioning, Plan()) for d in (one, two)]
        expected.append(float(sum((a - b) ** 2 for a, b in zip(said[0].flatten(), said[1].flatten(), strict=True))) / 2)
    found = fisher_divergence(base, custom, toy.latents(), 3, one.sigmas, draws=10, seed=4)
    assert sorted(found.values.tolist()) == pytest.approx(sorted(expected), rel=1e-5)
    assert found.interval.mean == pytest.approx(sum(expected) / 10, rel=1e-5)
    in_ones = fisher_divergence(base, custom, toy.latents(), 3, one.sigmas, draws=10, seed=4, batch=1)
    torch.testing.assert_close(in_ones.values, found.values, rtol=1e-5, atol=0)
    again = fisher_divergence(base, custom, toy.latents(), 3, one.sigmas, draws=10, seed=4)
    assert torch.equal(again.values, found.values)
    other = fisher_divergence(base, custom, toy.latents(), 3, one.sigmas, draws=10, seed=5)
    assert not torch.equal(other.values, found.values)


@pytest.mark.parametrize("layout", ["block", "layer", "value"])
def test_a_concept_is_exactly_nothing_where_the_word_is_not(layout):
    denoiser = toy.ToyDenoiser()
    prompts = [NAMING[0], EncodedPrompt(OTHER[0].conditioning, ((),))]
    base = DenoiserPredictor(denoiser, prompts)
    custom = DenoiserPredictor(denoiser, prompts, [toy.loaded(toy.concept(denoiser, layout))])
    found = fisher_divergence(base, custom, toy.latents(), 2, denoiser.sigmas, draws=12)
    assert found.of_prompt(1) == 0.0
    assert found.of_prompt(0) > 0.01
    silent = DenoiserPredictor(denoiser, prompts, [toy.loaded(toy.concept(denoiser, layout), 0.0)])
    none = fisher_divergence(base, silent, toy.latents(), 2, denoiser.sigmas, draws=12).interval
    assert (none.mean, none.low, none.high) == (0.0, 0.0, 0.0)


def test_the_concept_stream_is_the_base_streams_maps_with_the_residual_of_its_bin():
    denoiser = toy.ToyDenoiser()
    concept = toy.loaded(toy.concept(denoiser, bins=2), 0.7)
    noised, sigma = toy.latents(2), denoiser.sigmas[[100, 900]]
    said = DenoiserPredictor(denoiser, NAMING, [concept])(noised, sigma, 1)
    for row, bin_ in enumerate((0, 1)):
        text, maps = NAMING[1].conditioning, {}
        denoiser.predict(noised[[row]], sigma[[row]], text, Plan(readers=[Recorder(maps)]))
        plan = Plan(SuppliedMaps(maps), injections=[inject(concept, [0], [NAMING[1].spans[0]], [bin_])])
        torch.testing.assert_close(said[[row]], denoiser.predict(noised[[row]], sigma[[row]], text, plan))
    own = DenoiserPredictor(denoiser, NAMING, [replace(concept, replacement=NEVER)])(noised, sigma, 1)
    assert not torch.allclose(own, said)
    trained_so = replace(concept, residual=replace(concept.residual, training={"replace_maps": "false"}))
    torch.testing.assert_close(DenoiserPredictor(denoiser, NAMING, [trained_so])(noised, sigma, 1), own)
    half = replace(concept, residual=replace(concept.residual, training={"replacement_end": "0.5"}))
    mixed = DenoiserPredictor(denoiser, NAMING, [half])(noised, sigma, 1)  # of timesteps 100 and 900
    torch.testing.assert_close(mixed, torch.cat([own[[0]], said[[1]]]))
    plan = Plan(injections=[inject(concept, [0], [NAMING[1].spans[0]], [0])])
    torch.testing.assert_close(own[[0]], denoiser.predict(noised[[0]], sigma[[0]], NAMING[1].conditioning, plan))


class Velocity(toy.ToyDenoiser):
    """The same network, saying v instead of epsilon."""

    prediction = "v_prediction"

    def predict(self, noised: Tensor, sigma: Tensor, conditioning: Conditioning, plan: Plan) -> Tensor:
        noise = super().predict(noised, sigma, conditioning, plan)
        latent = noised - sigma.reshape(-1, 1, 1, 1) * noise
        return target("v_prediction", latent, noise, sigma)


def test_v_prediction_is_compared_as_epsilon():
    one, two = toy.ToyDenoiser(), Velocity()
    same = fisher_divergence(
        DenoiserPredictor(one, OTHER), DenoiserPredictor(two, OTHER), toy.latents(), 3, one.sigmas, draws=20
    )
    assert same.values.max() < 1e-6


def test_what_cannot_be_compared_is_refused():
    sigmas = toy.ToyDenoiser().sigmas
    with pytest.raises(InfusionError, match=r"^no images to compare the models on; give at least one$"):
        fisher_divergence(Spy(), Spy(), toy.latents(0), 1, sigmas)
    with pytest.raises(
        InfusionError, match=r"^no prompts to compare the models on; give some that are not about the concept$"
    ):
        fisher_divergence(Spy(), Spy(), toy.latents(), 0, sigmas)
    with pytest.raises(InfusionError, match="3 draws are not enough for 4 prompts"):
        fisher_divergence(Spy(), Spy(), toy.latents(), 4, sigmas, draws=3)


def test_the_interval_is_scipys_percentile_bootstrap():
    values = torch.randn(60, generator=torch.Generator().manual_seed(0)).double().exp()
    ours = bootstrap_interval(values)
    theirs = stats.bootstrap((values.numpy(),), np.mean, method="percentile", n_resamples=20000)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.mean == pytest.approx(values.mean().item())
    assert abs(ours.low - theirs.confidence_interval.low) < 0.08 * width
    assert abs(ours.high - theirs.confidence_interval.high) < 0.08 * width


def test_the_interval_covers_the_mean():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(400, 64, generator=generator)
    covered = sum(i.low <= 0 <= i.high for i in map(bootstrap_interval, drawn))
    assert 0.90 <= covered / 400 <= 0.98


def test_the_interval_of_strata_covers_the_mean_without_counting_the_trend():
    generator = torch.Generator().manual_seed(0)
    covered, widths = 0, []
    for _ in range(300):
        times = (torch.arange(64) + torch.rand(64, generator=generator)) / 64
        drawn = 10 * times + torch.rand(64, generator=generator)
        found = bootstrap_interval(drawn, group=8)
        covered += found.low <= 5.5 <= found.high
        widths.append(found.high - found.low)
    assert 0.93 <= covered / 300 <= 1.0
    plain = bootstrap_interval(drawn)
    assert sum(widths) / 300 < 0.25 * (plain.high - plain.low)
    assert bootstrap_interval(torch.arange(5.0), group=8) == bootstrap_interval(torch.arange(5.0))


def test_one_prompt_without_spans_serves_models_without_concepts():
    plain = [EncodedPrompt(p.conditioning) for p in OTHER]
    denoiser = toy.ToyDenoiser()
    one = DenoiserPredictor(denoiser, plain)
    assert fisher_divergence(one, one, toy.latents(), 3, denoiser.sigmas, draws=6).interval.high == 0.0


def test_draws_are_reproducible_to_the_number():
    """Images in a random order, one timestep per slice, prompts in turn: all from one generator."""
    sigmas, latents, spy = toy.ToyDenoiser().sigmas, toy.latents(3), Spy()
    found = fisher_divergence(spy, Spy(lambda s: float(s)), latents, 2, sigmas, draws=40, seed=5, batch=3)
    g = torch.Generator().manual_seed(5)
    times = ((torch.arange(40) + torch.rand(40, generator=g)) * 1000 / 40).long()
    images = torch.randperm(40, generator=g) % 3
    noise = torch.randn(40, 4, 2, 2, generator=g)
    wanted = {(float(sigmas[t]), i % 2): latents[images[i]] + sigmas[t] * noise[i] for i, t in enumerate(times)}
    assert len(spy.asked) == 40
    for noised, sigma, prompt in spy.asked:
        torch.testing.assert_close(noised, wanted[sigma, prompt])
    assert found.times.tolist() == times.tolist()
    torch.testing.assert_close(found.values, sigmas[times].double().square() * 16 / 2)
    assert found.interval == bootstrap_interval(found.values, group=8)
    assert found.interval != bootstrap_interval(found.values)


def test_sizes_that_nobody_asked_for():
    sizes = []

    class Sizes(Spy):
        def __call__(self, noised, sigma, prompt):
            sizes.append(len(noised))
            return super().__call__(noised, sigma, prompt)

    sigmas = toy.ToyDenoiser().sigmas
    whole = fisher_divergence(Sizes(), Spy(), toy.latents(1), 1, sigmas)
    assert (len(whole.values), sizes) == (64, [8] * 8)
    again = fisher_divergence(Spy(), Spy(), toy.latents(1), 1, sigmas, seed=0)
    assert whole.times.tolist() == again.times.tolist()
    assert len(fisher_divergence(Spy(), Spy(), toy.latents(1), 3, sigmas, draws=3).values) == 3


def test_predictions_in_double_precision_are_compared_in_single():
    class Double(Spy):
        def __call__(self, noised, sigma, prompt):
            return super().__call__(noised, sigma, prompt).double() + 1e-12

    sigmas = toy.ToyDenoiser().sigmas
    assert fisher_divergence(Double(lambda _: 1.0), Spy(lambda _: 1.0), toy.latents(), 1, sigmas, 4).values.max() == 0


def test_an_interval_is_the_same_at_every_call():
    values = torch.randn(30, generator=torch.Generator().manual_seed(2))
    found = bootstrap_interval(values)
    torch.manual_seed(123)
    assert bootstrap_interval(values) == found
    # Resamples are drawn with seed 0, so that figures in reports can be reprinted.
    assert (found.low, found.high) == pytest.approx((-0.526164, 0.062110), abs=1e-5)
    assert found.half == found.high - found.mean

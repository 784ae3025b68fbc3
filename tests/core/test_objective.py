"""The gradient of Infusion's objective, with magnitudes, against the loss written out and differentiated in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infusion_core.errors import InfusionError
from infusion_core.noise import stratified_times, uniform_times
from infusion_core.residual_file import concept_bytes, concept_from_bytes
from infusion_core.schedule import NEVER, Window
from infusion_core.training.engine import Trainer
from infusion_core.training.objective import Noised, loss_weights
from infusion_core.training.residual import ResidualObjective, ResidualSettings

from . import explicit
from .toy import PARTS, WIDTH, ToyDenoiser, concept, latents, prompts

BATCH, BINS = 3, 2
MASKS = torch.tensor([[[[1.0, 0.1], [0.5, 0.0]]], [[[0.3, 0.2], [0.0, 1.0]]]])


def settings(**changes):
    return ResidualSettings(**{"steps": 4, "batch_size": BATCH, "bins": BINS, "parts": PARTS, **changes})


def objective(how, masks=None, denoiser=None):
    denoiser = denoiser or ToyDenoiser()
    start = concept(denoiser, how.layout, how.bins)
    return ResidualObjective(denoiser, latents(), prompts(), "cat", how, start, masks)


def batch(seed, size=BATCH, chosen="stratified"):
    """What the objective is documented to draw: images, captions, timesteps (one per slice or independent), noise."""
    g = torch.Generator().manual_seed(seed)
    images, captions = (torch.randint(n, (size,), generator=g).tolist() for n in (2, 3))
    if chosen == "stratified":
        times = ((torch.arange(size) + torch.rand(size, generator=g)) / size * 1000).long()
    else:
        times = torch.randint(1000, (size,), generator=g)
    return images, captions, times, torch.randn(size, 4, 2, 2, generator=g)


def written_out(how, masks, seed):
    """Loss and its gradient by place: eq. 8 with eq. 7 inside, nothing of the core but the toy's weights."""
    denoiser = ToyDenoiser()
    images, captions, times, eps = batch(seed, chosen=how.times)
    sigmas = denoiser.sigmas.double()
    sigma, z = sigmas[times], latents()[images].double()
    noised = z + sigma.reshape(-1, 1, 1, 1) * eps.double()
    context = torch.cat([prompts()[i].conditioning.context for i in captions]).double()
    start = concept(denoiser, how.layout, how.bins).tensors
    delta = {place: t.double().requires_grad_() for place, t in start.items()}
    place_of = {s.name: s.block if how.layout in ("block", "parts") else s.name for s in denoiser.base.sites}
    additions = [
        (row, 2, {site: delta[place][int(times[row]) * how.bins // 1000, 0] for site, place in place_of.items()})
        for row in range(BATCH)
    ]
    parts = []
    if how.layout == "parts":
        parts = [(row, at, {s: t.reshape(2, PARTS, WIDTH) for s, t in by.items()}) for row, at, by in additions]
        additions = []
    value_space, queries = how.layout == "value", []
    maps = explicit.predict(denoiser, noised, sigma, context, seen=queries)[1]
    replaced, _ = explicit.predict(denoiser, noised, sigma, context, additions, value_space, maps, parts, queries)
    own, _ = explicit.predict(denoiser, noised, sigma, context, additions, value_space, None, parts, None)
    lowest = 1000 * (1 - how.replacement_end) if how.replace_maps else 1000  # timestep with the base stream's maps
    out = torch.where((times >= lowest).reshape(-1, 1, 1, 1), replaced, own)
    error = (out - eps.double()) ** 2
    if masks is not None:
        chosen = masks.double()[images]
        error = error * chosen / chosen.mean(dim=(1, 2, 3), keepdim=True)
    per_sample = error.mean(dim=(1, 2, 3))
    if how.weighting == "velocity":
        weight = torch.minimum(1 + sigmas**2, torch.tensor(8.0, dtype=torch.float64))
        per_sample = per_sample * weight[times] / weight.mean()
    loss = per_sample.mean()
    return loss.item(), dict(zip(delta, torch.autograd.grad(loss, list(delta.values())), strict=True))


def leaves(under_test):
    """What is trained, by name."""
    return {name: tensor for group in under_test.groups() for name, tensor in group.tensors.items()}


def far(found, expected):
    """Largest difference over the largest number, all places together."""
    scale = max(t.abs().max() for t in expected.values())
    return max((found[k].double() - t).abs().max() / scale for k, t in expected.items()).item()


@pytest.mark.parametrize("masks", [None, MASKS], ids=["whole", "masked"])
@pytest.mark.parametrize("maps", [{"replacement_end": 1.0}, {"replacement_end": 0.5}, {"replace_maps": False}])
@pytest.mark.parametrize("weighting", ["uniform", "velocity"])
@pytest.mark.parametrize("layout", ["block", "layer", "value", "parts"])
def test_the_gradient_is_that_of_the_loss_written_out(layout, weighting, maps, masks):
    how = settings(layout=layout, weighting=weighting, **maps)
    under_test = objective(how, masks)
    (losses,) = under_test.losses(torch.Generator().manual_seed(7)).values()
    assert losses.shape == (BATCH,)
    trained = leaves(under_test)
    found = dict(zip(trained, torch.autograd.grad(losses.mean(), list(trained.values())), strict=True))
    loss, expected = written_out(how, masks, 7)
    if layout == "parts":  # trained apart, for keys have a rate of their own
        halves = {place: gradient.chunk(2, 2) for place, gradient in expected.items()}
        expected = {p: half[0] for p, half in halves.items()} | {f"{p}.keys": half[1] for p, half in halves.items()}
    assert losses.mean().item() == pytest.approx(loss, rel=1e-5)
    assert far(found, expected) < 1e-5


def test_timesteps_are_chosen_as_the_settings_say():
    how = settings(layout="layer", times="uniform")
    (losses,) = objective(how).losses(torch.Generator().manual_seed(7)).values()
    assert losses.mean().item() == pytest.approx(written_out(how, None, 7)[0], rel=1e-5)
    other = replace(how, times="stratified")
    assert losses.mean().item() != pytest.approx(written_out(other, None, 7)[0], rel=1e-2)


def test_loss_weights_are_one_on_average_and_capped():
    sigmas = torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0])  # weighed 1, 2, 5, 8, 8 before they are divided by their mean
    assert loss_weights("velocity", sigmas).tolist() == pytest.approx([w / 4.8 for w in (1, 2, 5, 8, 8)])
    assert loss_weights("uniform", sigmas).tolist() == [1.0] * 5


@pytest.mark.parametrize(
    "other", [{"replace_maps": False}, {"replacement_end": 1.0}, {"weighting": "uniform"}, {"bins": 1}, "masks"]
)
def test_the_oracle_would_see_a_part_left_out(other):
    """What the test above guards moves its figures by far more than its tolerance."""
    how, masks = settings(layout="layer"), MASKS
    _, whole = written_out(how, masks, 7)
    changed, left_out = (how, None) if other == "masks" else (replace(how, **other), masks)
    _, part = written_out(changed, left_out, 7)
    if other == {"bins": 1}:
        part = {k: torch.cat([t, torch.zeros_like(t)]) for k, t in part.items()}
    assert far(part, whole) > 0.05


def test_one_step_of_the_engine_is_adam_on_that_gradient():
    """Adam keeps a tenth of the first gradient as its mean, so the state tells magnitudes, loss scale taken off."""
    how = settings(layout="layer", seed=3)
    trainer = Trainer(objective(how, MASKS), how)
    report = next(trainer.run())
    loss, expected = written_out(how, MASKS, 3 * 1_000_003)
    state = trainer.state()
    assert report.loss == pytest.approx(loss, rel=1e-5)
    assert far({k: m * 10 for k, m in state.mean.items()}, expected) < 1e-5
    assert far({k: m * 1000 for k, m in state.square.items()}, {k: g**2 for k, g in expected.items()}) < 1e-5
    start = concept(ToyDenoiser(), "layer", BINS).tensors
    for place, moved in state.parameters.items():
        known = expected[place].abs() > 1e-4
        step = (moved - start[place]).double()[known]
        torch.testing.assert_close(step, (-how.learning_rate * expected[place].sign())[known], rtol=1e-3, atol=1e-5)


def test_accumulation_is_the_mean_of_the_passes():
    how = settings(layout="layer", accumulation=2)
    trainer = Trainer(objective(how), how)
    report = next(trainer.run())
    drawn, means = torch.Generator().manual_seed(0), []
    under_test, total = objective(how), {}
    for _ in range(2):
        (losses,) = under_test.losses(drawn).values()
        trained = leaves(under_test)
        for place, g in zip(trained, torch.autograd.grad(losses.mean(), list(trained.values())), strict=True):
            total[place] = total.get(place, 0) + g / 2
        means.append(losses.mean().item())
    assert far({k: m * 10 for k, m in trainer.state().mean.items()}, total) < 1e-5
    assert report.loss == pytest.approx(sum(means) / 2)


def test_validation_is_the_same_unweighted_loss_at_every_call():
    how = settings(layout="block", validation_draws=5, replacement_end=1.0)
    under_test = objective(how)
    losses = under_test.validation(5, 11).detach()
    assert losses.shape == (5,)
    torch.testing.assert_close(under_test.validation(5, 11).detach(), losses)
    denoiser, sigmas = ToyDenoiser(), ToyDenoiser().sigmas.double()
    times = torch.tensor([100, 300, 500, 700, 900])
    eps = torch.randn(5, 4, 2, 2, generator=torch.Generator().manual_seed(11)).double()
    z = latents()[[0, 1, 0, 1, 0]].double()
    context = torch.cat([prompts()[i].conditioning.context for i in (0, 1, 2, 0, 1)]).double()
    sigma = sigmas[times]
    noised = z + sigma.reshape(-1, 1, 1, 1) * eps
    residual = concept(denoiser, "block", BINS).tensors
    place_of = {s.name: s.block for s in denoiser.base.sites}
    additions = [
        (row, 2, {site: residual[place][int(t) * 2 // 1000, 0].double() for site, place in place_of.items()})
        for row, t in enumerate(times)
    ]
    maps = explicit.predict(denoiser, noised, sigma, context)[1]
    out, _ = explicit.predict(denoiser, noised, sigma, context, additions, maps=maps)
    expected = ((out - eps) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)


def test_every_slice_of_the_timesteps_is_drawn_once():
    times = stratified_times(8, 1000, torch.Generator().manual_seed(0))
    assert (times * 8 // 1000).tolist() == list(range(8))
    assert len({int(t) % 125 for t in times}) > 1


def test_rounding_reaches_no_timestep_beyond_the_last(monkeypatch):
    """What `torch.rand` can give at most, at the last of four slices: the sum rounds to 4."""
    monkeypatch.setattr("infusion_core.noise.torch.rand", lambda count, generator: torch.full((count,), 1 - 2**-24))
    assert stratified_times(4, 1000, torch.Generator())[-1] == 999


EMPTY = r"^mask 2 of 2 is empty or not between 0 and 1; paint the subject white$"


def bad(value, where=(1, 0, 0, 0)):
    broken = latents()
    broken[where] = value
    return broken


@pytest.mark.parametrize(
    ("latents_", "masks", "message"),
    [
        (
            bad(float("nan")),
            None,
            r"^image 2 of 2 is not a finite number everywhere once it is encoded; check that the picture itself holds "
            r"no NaN, or use a VAE in full precision \(SDXL's own overflows in half precision\)$",
        ),
        (bad(float("inf"), (0, 1, 0, 0)), None, r"image 1 of 2"),
        (latents()[:0], None, r"^no images to learn from; give at least one$"),
        (latents(), torch.stack([MASKS[0], torch.zeros(1, 2, 2)]), EMPTY),
        (latents(), -MASKS, "mask 1 of 2"),
        (latents(), torch.stack([MASKS[0], MASKS[1] - 0.01]), "mask 2 of 2"),
        (latents(), torch.stack([MASKS[0], MASKS[1] * float("inf")]), "mask 2 of 2"),
        (latents(), MASKS * float("nan"), "mask 1 of 2"),
    ],
)
def test_bad_photos_and_masks_are_named_before_the_first_step(latents_, masks, message):
    with pytest.raises(InfusionError, match=message):
        ResidualObjective(ToyDenoiser(), latents_, prompts(), "cat", settings(), masks=masks)


def test_a_caption_without_the_word():
    with pytest.raises(InfusionError, match="does not hold the word 'cat'"):
        ResidualObjective(ToyDenoiser(), latents(), prompts(spans=()), "cat", settings())


def test_what_is_learned_says_whether_maps_were_replaced():
    assert objective(settings(replacement_end=0.3)).learned().map_window == Window(0.0, 0.3)
    assert objective(settings(replacement_end=1.0)).learned().training == {}
    learned = objective(settings(replace_maps=False)).learned()
    assert learned.map_window == NEVER
    assert all(not t.requires_grad for t in learned.tensors.values())


@pytest.mark.parametrize("end", [0.01, 0.0123456789, 1 / 3, 0.999999999])
def test_every_share_of_a_run_can_be_saved(end):
    learned = objective(settings(replacement_end=end)).learned()
    assert concept_from_bytes(concept_bytes(learned)).map_window.end == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize("end", [0.0, 0.00001, -1.0, 1.5, float("nan")])
def test_a_share_outside_the_run(end):
    with pytest.raises(InfusionError, match=r"replacement_end must be 0\.01 to 1"):
        settings(replacement_end=end)


def test_uniform_times_are_independent_and_of_every_level():
    times = uniform_times(4000, 10, torch.Generator().manual_seed(0))
    assert times.shape == (4000,)
    assert times.bincount().tolist() == pytest.approx([400] * 10, abs=90)
    assert uniform_times(4000, 10, torch.Generator().manual_seed(0)).tolist() == times.tolist()


def test_noise_is_added_in_the_latents_precision_and_v_is_wanted_where_the_network_says_v():
    z = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    sigmas, times = ToyDenoiser().sigmas, torch.tensor([10, 500, 900])
    sigma = sigmas[times].double().reshape(-1, 1, 1, 1)
    for dtype, far_ in ((torch.float32, 1e-5), (torch.float16, 2e-2)):
        found = Noised.of(z.to(dtype), times, eps, sigmas, "v_prediction")
        assert (found.latents.dtype, found.wanted.dtype, found.sigma.dtype) == (dtype, dtype, torch.float32)
        torch.testing.assert_close(found.sigma, sigmas[times])
        torch.testing.assert_close(found.latents.double(), z.double() + sigma * eps, rtol=far_, atol=far_)
        wanted = (eps - sigma * z) / (sigma**2 + 1).sqrt()
        torch.testing.assert_close(found.wanted.double(), wanted, rtol=far_, atol=far_)
        errors = found.errors(found.wanted + 1)
        assert errors.dtype == torch.float32
        torch.testing.assert_close(errors, torch.ones(3), rtol=far_, atol=far_)


def test_words_of_several_tokens_have_a_residual_for_each():
    two = [replace(p, spans=(((1, 2), (3, 4)),)) for p in prompts()]
    under_test = ResidualObjective(ToyDenoiser(), latents(), two, "teddy bear", settings(layout="layer", bins=1))
    learned = under_test.learned()
    assert (learned.word, learned.tokens, learned.bins) == ("teddy bear", 2, 1)
    losses = under_test.losses(torch.Generator().manual_seed(0))
    assert list(losses) == ["denoising"]
    losses["denoising"].mean().backward()
    assert all((t.grad.abs().sum(dim=(0, 2)) > 0).all() for t in leaves(under_test).values())


def test_a_concept_in_half_precision_goes_on_in_single():
    start = concept(ToyDenoiser()).to("cpu", torch.float16)
    under_test = ResidualObjective(ToyDenoiser(), latents(), prompts(), "cat", settings(layout="block", bins=1), start)
    assert {t.dtype for t in leaves(under_test).values()} == {torch.float32}
    for name, tensor in under_test.learned().tensors.items():
        torch.testing.assert_close(tensor, start.tensors[name].float())

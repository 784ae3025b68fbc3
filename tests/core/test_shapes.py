"""Photos that keep their shape: their sizes, and a run on several sizes against objectives that know of one alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from infusion_core.errors import InfusionError
from infusion_core.training.engine import SEEDS_APART, Trainer
from infusion_core.training.joint import JointObjective
from infusion_core.training.overfitting import Indicator, Restraint
from infusion_core.training.residual import ResidualObjective, ResidualSettings
from infusion_core.training.shapes import ShapedObjective, first_member, grouped, on_shapes, size_for, step_of
from infusion_core.training.shown import in_turn

from .toy import ToyDenoiser, concept, prompts

SETTINGS = ResidualSettings(
    steps=4, batch_size=2, layout="layer", bins=1, snapshot_every=2, validation_draws=5, replacement_end=0.5,
    restraint=Restraint(measure=True, bins=3),
)  # fmt: skip
COUNTS = (3, 1)
SAID = ([[0], [1], [0, 1]], [[2]])


@pytest.mark.parametrize(
    ("photo", "size"),
    [((4000, 4000), (1024, 1024)), ((4000, 3000), (1152, 896)), ((3000, 4000), (896, 1152)),
     ((3000, 2000), (1216, 832)), ((1920, 1080), (1344, 768)), ((1080, 1920), (768, 1344))],
)  # fmt: skip
def test_sizes_are_those_that_sdxl_was_trained_with(photo, size):
    """Of the table in appendix I of arXiv 2307.01952."""
    assert size_for(photo, 1024, 64) == size


@pytest.mark.parametrize(("edge", "step"), [(512, 64), (128, 16), (520, 64), (64, 64)])
def test_no_other_size_is_nearer_and_none_is_larger_than_the_square(edge, step):
    every = [(edge, edge)]
    for wide in range(step, 4 * edge, step):
        for high in range(step, 4 * edge, step):
            if wide * high <= edge * edge and max(wide, high) <= 4 * min(wide, high):
                every.append((wide, high))
    largest = [s for s in every if not any(s != o and o[0] >= s[0] and o[1] >= s[1] for o in every)]
    for photo in ((1, 1), (3, 2), (2, 3), (16, 9), (9, 16), (5, 4), (30, 1), (1, 30), (1001, 999)):
        found = size_for(photo, edge, step)
        assert found in every
        aside = [abs(math.log(s[0] / s[1] / (photo[0] / photo[1]))) for s in (found, *largest)]
        assert aside[0] <= min(aside[1:]) + 1e-9
        assert size_for(photo[::-1], edge, step) == found[::-1]


def test_steps_are_the_models_own_where_the_square_is_small():
    assert step_of(128, 16) == 16
    assert step_of(512, 16) == step_of(1024, 32) == 64


def test_photos_of_one_size_come_together():
    photos = [(300, 200), (100, 100), (600, 400), (7, 7), (200, 300)]
    assert list(grouped(photos, 128, 16).values()) == [[0, 2], [1, 3], [4]]


def pictures(seed, count, height, width):
    return torch.randn(count, 2, 4, height, width, generator=torch.Generator().manual_seed(seed))


def parts():
    """Latents with a variant of each, prompts, masks and captions' numbers, for each of two sizes."""
    masks = torch.rand(1, 2, 1, 4, 1, generator=torch.Generator().manual_seed(5))
    return [
        (pictures(1, COUNTS[0], 2, 2), prompts(3), None, SAID[0]),
        (pictures(2, COUNTS[1], 4, 1), prompts(3)[::-1], masks, SAID[1]),
    ]


def alone(number, settings=SETTINGS):
    """An objective that knows of one size only."""
    denoiser = ToyDenoiser()
    latents, said, masks, numbers = parts()[number]
    start = concept(denoiser, settings.layout)
    return ResidualObjective(denoiser, latents, said, "cat", settings, start, masks, numbers)


def shaped(settings=SETTINGS):
    first = alone(0, settings)
    return on_shapes([first, first.on(*parts()[1])], COUNTS)


def tensors(objective):
    return {name: tensor for group in objective.groups() for name, tensor in group.tensors.items()}


def gradient(objective, loss):
    trained = tensors(objective)
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def test_a_batch_is_one_of_the_objective_that_knows_its_size_alone():
    seen = Counter()
    for seed in range(12):
        under_test = shaped()
        (losses,) = under_test.losses(torch.Generator().manual_seed(seed)).values()
        generator = torch.Generator().manual_seed(seed)
        number = int(torch.randint(sum(COUNTS), (), generator=generator) >= COUNTS[0])
        wanted = alone(number)
        (explicit,) = wanted.losses(generator).values()
        assert torch.equal(losses, explicit)
        assert torch.equal(first_member(under_test).indicator.gamma, wanted.indicator.gamma)
        found, expected = gradient(under_test, losses.mean()), gradient(wanted, explicit.mean())
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        seen[number] += 1
    assert set(seen) == {0, 1}


def test_every_photo_is_seen_as_often():
    class Counted:
        def __init__(self):
            self.count = 0

        def losses(self, generator):
            self.count += 1
            return {}

    members = Counted(), Counted(), Counted()
    objective = ShapedObjective(members, (5, 1, 2))
    for seed in range(4000):
        objective.losses(torch.Generator().manual_seed(seed))
    assert [member.count / 4000 for member in members] == pytest.approx([5 / 8, 1 / 8, 2 / 8], abs=0.03)


def test_validation_takes_turns_over_the_photos():
    found = shaped().validation(5, 11)  # photos 1 2 3 4 1: four of the first size and one of the second
    first, (second,) = alone(0).validation(4, 11), alone(1).validation(1, 11)  # at 1/8, 3/8, 5/8, 7/8; at 1/2
    wanted = torch.stack([first[0], first[1], second, first[2], first[3]])  # levels of noise ascend
    assert torch.equal(found, wanted)
    assert len(shaped().validation(2, 11)) == 2


def test_more_photos_than_draws_take_turns_over_all_of_them():
    assert in_turn(3, 8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert in_turn(16, 8).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert in_turn(11, 8).tolist() == [0, 1, 2, 4, 5, 6, 8, 9]  # of eight wide and three tall photos: one is tall


def run(settings, state=None, steps=4):
    trainer = Trainer(shaped(settings), settings, state)
    for report in trainer.run():
        if report.step == steps:
            break
    return trainer


def test_a_run_is_the_loop_written_out():
    settings = replace(SETTINGS, schedule="constant", learning_rate=0.01, restraint=Restraint(), seed=3)
    found = tensors(run(settings).objective)
    members = [alone(0, settings), alone(1, settings)]
    trained = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors(members[0]).items()}
    optimizer = torch.optim.AdamW(list(trained.values()), lr=0.01, weight_decay=settings.weight_decay)
    for step in range(4):
        generator = torch.Generator().manual_seed(3 * SEEDS_APART + step)
        member = members[int(torch.randint(4, (), generator=generator) >= 3)]
        with torch.no_grad():
            for name, tensor in tensors(member).items():
                tensor.copy_(trained[name])
        (losses,) = member.losses(generator).values()
        for name, part in gradient(member, losses.mean()).items():
            trained[name].grad = part
        optimizer.step()
    assert all(torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-6) for name, tensor in trained.items())


def test_a_resumed_run_repeats_bit_by_bit():
    whole = run(SETTINGS)
    state = run(SETTINGS, steps=2).state()
    again = run(SETTINGS, state)
    assert all(torch.equal(tensors(again.objective)[k], v) for k, v in tensors(whole.objective).items())
    assert torch.equal(first_member(again.objective).indicator.gamma, first_member(whole.objective).indicator.gamma)
    assert isinstance(first_member(again.objective).indicator, Indicator)


def test_one_size_is_no_more_than_its_objective():
    only = alone(0)
    assert on_shapes([only], [3]) is only
    assert first_member(only) is only


def test_concepts_that_share_a_run_have_photos_of_one_size():
    with pytest.raises(InfusionError, match="photos of one size"):
        JointObjective([alone(0), shaped()])

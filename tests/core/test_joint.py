"""Several concepts in one run learn what each learns alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infusion_core.errors import InfusionError
from infusion_core.training.engine import Trainer
from infusion_core.training.joint import JointObjective, joint_trainer
from infusion_core.training.looks import errors_of
from infusion_core.training.overfitting import RESTRAINED
from infusion_core.training.residual import ResidualObjective, ResidualSettings

from .toy import PARTS, ToyDenoiser, prompts

SETTINGS = ResidualSettings(steps=5, batch_size=3, parts=PARTS, bins=2, learning_rate=0.05, snapshot_every=2)
WORDS = ("cat", "dog", "teddy bear")


def members(settings=SETTINGS, denoiser=None):
    """Concepts of other photos, captions, positions and numbers of tokens."""
    denoiser = denoiser or ToyDenoiser()
    made = []
    for number, (word, spans) in enumerate(zip(WORDS, (((2,),), ((1,), (4,)), ((1, 2),)), strict=True)):
        generator = torch.Generator().manual_seed(10 + number)
        photos = torch.randn(2 + number, 2, 4, 2, 2, generator=generator)
        masks = torch.rand(2 + number, 2, 1, 2, 2, generator=generator) if number == 1 else None
        said = prompts(2 + number, spans)
        made.append(ResidualObjective(denoiser, photos, said, word, settings, masks=masks))
    return made


CASES = [
    {}, {"layout": "block"}, {"layout": "value"}, {"layout": "parts"}, {"replace_maps": False},
    {"restraint": RESTRAINED}, {"accumulation": 2, "times": "uniform"},
]  # fmt: skip


@pytest.mark.parametrize("changed", CASES)
def test_together_is_alone(changed):
    settings = replace(SETTINGS, **changed)
    together = joint_trainer(members(settings))
    reports = list(together.run())
    alone = [Trainer(member, settings) for member in members(settings)]
    apart = [list(trainer.run()) for trainer in alone]
    for number, trainer in enumerate(alone):
        wanted, found = trainer.learned(), together.learned()[number]
        assert (found.word, found.tokens) == (wanted.word, wanted.tokens)
        for name, tensor in wanted.tensors.items():
            assert tensor.abs().max() > 0.01
            torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-4, atol=1e-6)
    assert [r.loss for r in reports] == pytest.approx([sum(r.loss for r in row) for row in zip(*apart, strict=True)])
    assert reports[1].validation_loss is not None
    assert together.objective.last == pytest.approx([row[-1].loss for row in apart])
    assert together.objective.validated == pytest.approx([row[-1].validation_loss for row in apart])


def test_before_anything_is_learned_both_streams_err_alike():
    """Masks weigh the base model's errors as they weigh the concept stream's."""
    looks = [member.look(torch.Generator().manual_seed(7)) for member in members()]
    assert looks[1].masks is not None
    found = errors_of(ToyDenoiser(), looks, SETTINGS.map_window, compared=True)
    for errors, reference in found:
        torch.testing.assert_close(errors, reference)
    masked = errors_of(ToyDenoiser(), [replace(looks[1], masks=None)], SETTINGS.map_window, compared=True)
    assert not torch.allclose(masked[0][1], found[1][1])


def test_a_resumed_run_is_the_uninterrupted_one():
    settings = replace(SETTINGS, restraint=RESTRAINED)
    whole = joint_trainer(members(settings))
    list(whole.run())
    first = joint_trainer(members(settings))
    reports = first.run()
    for _ in range(2):
        next(reports)
    second = joint_trainer(members(settings), first.state())
    assert len(list(second.run())) == 3
    for one, other in zip(whole.learned(), second.learned(), strict=True):
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_what_does_not_go_together_is_refused():
    denoiser = ToyDenoiser()
    one, other, _ = members(denoiser=denoiser)
    with pytest.raises(InfusionError, match="no concepts to train"):
        JointObjective([])
    with pytest.raises(InfusionError, match="one model"):
        JointObjective([one, members()[1]])
    with pytest.raises(InfusionError, match="the same settings"):
        JointObjective([one, members(replace(SETTINGS, batch_size=2), denoiser)[1]])
    wide = ResidualObjective(denoiser, torch.zeros(1, 4, 2, 4), prompts(), "cow", SETTINGS)
    with pytest.raises(InfusionError, match="photos of one size"):
        JointObjective([other, wide])
    longer = [replace(p, conditioning=replace(p.conditioning, context=p.conditioning.context.repeat(1, 2, 1)))
              for p in prompts()]  # fmt: skip
    with pytest.raises(InfusionError, match="captions of one length"):
        JointObjective([one, ResidualObjective(denoiser, torch.zeros(1, 4, 2, 2), longer, "cow", SETTINGS)])
    with pytest.raises(InfusionError, match="clip"):
        JointObjective(members(replace(SETTINGS, clip_norm=1.0)))

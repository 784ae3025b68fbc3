"""How TinyWorld's base model is trained: what a lesson shows, rare words, and a run that is stopped and goes on."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch

from infusion_core.attention import Plan, QueryKey
from infusion_core.denoiser import Conditioning
from infusion_core.embedded.tinyworld import HELD_OUT_LOOKS, words
from infusion_core.embedded.tinyworld.captions import caption, random_scene
from infusion_core.embedded.tinyworld.world import COLOURS, Look, Scene, Thing
from infusion_core.embedded.unet import UNetDenoiser
from infusion_core.noise import scaled_linear_sigmas, seeded
from infusion_core.readers import Recorder
from infusion_core.training.engine import Trainer
from infusion_core.training.settings import TrainSettings
from scripts.tinyworld import lesson, text_encoder
from scripts.tinyworld.lesson import Nouns
from scripts.tinyworld.probes import NOUN_SHARE, Grounding
from scripts.tinyworld.text_encoder import TextEncoderObjective, build_text_encoder, lengthen_rare_words
from scripts.tinyworld.unet import Encoded, UNetObjective, build_unet

CPU = torch.device("cpu")


@pytest.fixture
def scenes():
    rng = Random(0)
    return [random_scene(rng, HELD_OUT_LOOKS) for _ in range(24)]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return build_text_encoder().eval()


@torch.no_grad()
def test_a_lesson_hides_looks_in_the_values_of_nouns(scenes, encoder, monkeypatch):
    told: list[str] = []

    def noted(scene, say, opening):
        told.append(caption(scene, say, opening))
        return told[-1]

    def states(text):
        tokenizer = text_encoder.TOKENIZER
        return encoder(torch.tensor([tokenizer.frame(tokenizer.split(text)[0])])).last_hidden_state[0]

    monkeypatch.setattr(lesson, "caption", noted)
    monkeypatch.setattr(lesson, "EMPTY", 0.0)
    read = lesson.lesson(encoder, scenes, Random(1))
    hidden = set(read.rows.tolist())
    assert 0 < len(read.replaced) < len(hidden)
    assert set(read.replaced.tolist()) <= hidden
    texts, changes = iter(told), iter(zip(read.rows.tolist(), read.positions.tolist(), read.changes, strict=True))
    nouns = iter(zip(read.nouns.rows.tolist(), read.nouns.positions.tolist(), read.nouns.things.tolist(), strict=True))
    for row, scene in enumerate(scenes):
        full = next(texts)
        shown = next(texts) if row in hidden else full
        assert torch.allclose(read.states[row], states(shown), atol=1e-5)
        for number, thing in enumerate(scene.things):
            assert next(nouns) == (row, shown.split().index(thing.shape) + 1, number)
        for thing in scene.things if row in hidden else ():
            noun = full.split().index(thing.shape) + 1, shown.split().index(thing.shape) + 1
            at, position, change = next(changes)
            assert (at, position) == (row, noun[1])
            assert torch.allclose(change, states(full)[noun[0]] - states(shown)[noun[1]], atol=1e-5)
    assert next(changes, None) is None
    assert next(nouns, None) is None


@torch.no_grad()
def test_replaced_rows_attend_as_the_pass_that_is_not_told(scenes, encoder):
    torch.manual_seed(0)
    denoiser = UNetDenoiser(build_unet(), scaled_linear_sigmas(), "epsilon")
    read = lesson.lesson(encoder, scenes, Random(1))
    seen: dict[str, QueryKey] = {}

    def note(site, query, key):
        seen[site.name] = (query, key)

    latents, sigma = torch.randn(24, 4, 16, 16), torch.full((24,), 3.0)
    maps: dict[str, QueryKey] = {}
    plain = Plan(readers=[Recorder(maps)])
    denoiser.predict(latents[read.replaced], sigma[read.replaced], Conditioning(read.states[read.replaced]), plain)
    plan = read.plan(denoiser.base, maps)
    said = denoiser.predict(latents, sigma, Conditioning(read.states), Plan(plan.source, [note], plan.injections))
    for name, (query, key) in seen.items():
        assert torch.equal(query[read.replaced], maps[name][0])
        assert torch.equal(key[read.replaced], maps[name][1])
    untold = sorted(set(range(24)) - set(read.rows.tolist()))
    bare = denoiser.predict(latents, sigma, Conditioning(read.states), Plan())
    assert torch.allclose(said[untold], bare[untold], atol=1e-5)
    changed = (said - bare).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert changed[read.rows].all()


def test_rare_words_become_as_long_as_words(encoder):
    table = encoder.get_input_embeddings().weight
    known = sorted(text_encoder.TOKENIZER.ids.values())
    with torch.no_grad():
        table[known] *= 3
    before = table.detach().clone()
    lengthen_rare_words(encoder)
    rare = [i for i in range(words.VOCABULARY_SIZE) if i not in (words.START, words.END, *known)]
    assert len(rare) == 16
    assert table[rare].norm(dim=1).tolist() == pytest.approx([before[known].norm(dim=1).mean().item()] * 16, rel=1e-4)
    assert torch.equal(table[known], before[known])
    assert torch.cosine_similarity(table[rare], before[rare]).min() > 1 - 1e-5


@pytest.fixture
def data(scenes):
    torch.manual_seed(5)
    return Encoded(scenes, torch.randn(24, 4, 16, 16).half(), torch.rand(24, 3, 16, 16).half())


@pytest.mark.parametrize("network", ["text encoder", "UNet"])
def test_a_stopped_run_goes_on_bit_by_bit(network, data, encoder):
    settings = TrainSettings(steps=4, learning_rate=1e-3, schedule="cosine", warmup_steps=2, clip_norm=1.0)

    def trainer(state=None):
        torch.manual_seed(0)
        objective = (
            TextEncoderObjective(data.scenes, CPU) if network == "text encoder" else UNetObjective(data, encoder, CPU)
        )
        return Trainer(objective, settings, state)

    whole = trainer()
    losses = [report.loss for report in whole.run()]
    stopped = trainer()
    run = stopped.run()
    again = [next(run).loss, next(run).loss]
    resumed = trainer(stopped.state())
    again += [report.loss for report in resumed.run()]
    assert again == losses
    one, other = whole.learned().state_dict(), resumed.learned().state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_validation_draws_the_same_every_time(data, encoder):
    for objective in (UNetObjective(data, encoder, CPU), TextEncoderObjective(data.scenes, CPU)):
        assert torch.equal(objective.validation(6, 3), objective.validation(6, 3))
        assert not torch.equal(objective.validation(6, 3), objective.validation(6, 4))


def test_the_unet_learns_by_three_losses_and_leaves_the_text_encoder_as_it_is(data, encoder):
    objective = UNetObjective(data, encoder, CPU)
    losses = objective.losses(seeded(0))
    assert losses.keys() == {"denoising", "whereabouts", "grounding"}
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(p.grad is None for p in encoder.parameters())
    for group in objective.groups():
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in group.tensors.values())
    listening = [name for group in objective.groups() if group.rate == 2 for name in group.tensors]
    assert len(listening) == 3 * 7  # three projections at seven sites
    assert all(".attn2." in name for name in listening)


def test_grounding_wants_attention_to_a_noun_inside_its_thing_alone():
    covers = torch.zeros(2, 16, 16)
    covers[0, :8], covers[1, 4:12, 4:12] = 1, 1
    nouns = Nouns(torch.tensor([0, 0]), torch.tensor([2, 5]), torch.tensor([0, 1]))
    grounding, heads = Grounding(), 2

    def loss(wanted):
        """Of a layer with 16x16 cells in which the nouns have this attention, and all other words the rest."""
        other = (1 - wanted.sum(0)) / 5
        shares = torch.stack([wanted[0] if i == 2 else wanted[1] if i == 5 else other for i in range(7)], dim=-1)
        scores = shares.flatten(0, 1).clamp(min=1e-12).log() * math.sqrt(7)  # of queries as wide as there are words
        query = scores.expand(1, heads, 256, 7)
        grounding.reader(nouns)(None, query, torch.eye(7).expand(1, heads, 7, 7))
        return grounding.errors(covers)

    right = NOUN_SHARE * covers
    entropy = -(NOUN_SHARE * math.log(NOUN_SHARE) + (1 - NOUN_SHARE) * math.log(1 - NOUN_SHARE))
    assert loss(right).tolist() == pytest.approx([entropy / 2, entropy / 4], rel=1e-3)
    assert (loss(right.flip(0)) > loss(right) + 0.3).all()
    assert (loss(right * 0.5 + 0.05) > loss(right)).all()


def test_the_text_encoder_is_asked_what_the_caption_tells():
    red = Look("striped", "red", "white", rim="green")
    scene = Scene(
        (Thing("square", "small", "left", red), Thing("circle", "big", "right", Look("plain", "blue"))), "teal"
    )
    colours = list(COLOURS)
    told = {"size", "position", "look", "background"}
    square = [1, 1, 2, 3, 1 + colours.index("red"), 1 + colours.index("white"), 0]
    circle = [1, 2, 3, 1, 1 + colours.index("blue"), 0, 0]
    missing = [0] * 7
    assert text_encoder.answers_about(scene, told) == [*circle, *square, *missing, *missing, 4, 0]
    nothing = [1, *[0] * 6]
    assert text_encoder.answers_about(scene, {"pattern"}) == [*nothing, *nothing, *missing, *missing, 0, 0]


def test_a_text_encoder_learns_to_read(scenes):
    torch.manual_seed(0)
    objective = TextEncoderObjective(scenes, CPU)
    trainer = Trainer(objective, TrainSettings(steps=30, learning_rate=1e-3, validation_draws=32, snapshot_every=30))
    before = trainer.validation_loss()
    for _ in trainer.run():
        pass
    assert trainer.validation_loss() < 0.7 * before

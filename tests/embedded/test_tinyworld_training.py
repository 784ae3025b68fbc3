"""How TinyWorld's base model is trained: what a lesson shows, rare words, and a run that is stopped and goes on."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch

from infusion_core.attention import QueryKey
from infusion_core.denoiser import Conditioning
from infusion_core.embedded.tinyworld import HELD_OUT_LOOKS, words
from infusion_core.embedded.tinyworld.captions import caption, random_scene
from infusion_core.embedded.tinyworld.world import BODIES, COLOURS, Look
from infusion_core.embedded.unet import UNetDenoiser
from infusion_core.noise import scaled_linear_sigmas, seeded
from infusion_core.training.engine import Trainer
from infusion_core.training.settings import TrainSettings
from scripts.tinyworld import base, lesson
from scripts.tinyworld.base import BaseObjective, Encoded, build_text_encoder, build_unet, lengthen_rare_words
from scripts.tinyworld.probes import Reading

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
    told: list[tuple[str, bool]] = []

    def noted(scene, say, opening):
        told.append((caption(scene, say, opening), "look" in say))
        return told[-1][0]

    def states(text):
        return encoder(torch.tensor([lesson.TOKENIZER.frame(lesson.TOKENIZER.split(text)[0])])).last_hidden_state[0]

    monkeypatch.setattr(lesson, "caption", noted)
    monkeypatch.setattr(lesson, "EMPTY", 0.0)
    read = lesson.lesson(encoder, scenes, Random(1))
    nouns, count = list(zip(read.nouns, read.looks, strict=True)), 0
    hidden = set(read.rows.tolist())
    assert 0 < len(read.replaced) < len(hidden)
    assert set(read.replaced.tolist()) <= hidden
    texts, changes = iter(told), iter(zip(read.rows.tolist(), read.positions.tolist(), read.changes, strict=True))
    for row, scene in enumerate(scenes):
        full, says_look = next(texts)
        shown = next(texts)[0] if row in hidden else full
        assert torch.allclose(read.states[row], states(shown), atol=1e-5)
        for thing in scene.things if says_look else ():
            state = states(full)[full.split().index(thing.shape) + 1]
            assert thing.look in [look for noun, look in nouns if torch.allclose(noun, state, atol=1e-5)]
            count += 1
        for thing in scene.things if row in hidden else ():
            noun = full.split().index(thing.shape) + 1, shown.split().index(thing.shape) + 1
            at, position, change = next(changes)
            assert (at, position) == (row, noun[1])
            assert torch.allclose(change, states(full)[noun[0]] - states(shown)[noun[1]], atol=1e-5)
    assert next(changes, None) is None
    assert count == len(nouns)


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
    plain = base.Plan(readers=[base.Recorder(maps)])
    denoiser.predict(latents[read.replaced], sigma[read.replaced], Conditioning(read.states[read.replaced]), plain)
    plan = read.plan(denoiser.base, maps)
    said = denoiser.predict(latents, sigma, Conditioning(read.states), base.Plan(plan.source, [note], plan.injections))
    for name, (query, key) in seen.items():
        assert torch.equal(query[read.replaced], maps[name][0])
        assert torch.equal(key[read.replaced], maps[name][1])
    untold = sorted(set(range(24)) - set(read.rows.tolist()))
    bare = denoiser.predict(latents, sigma, Conditioning(read.states), base.Plan())
    assert torch.allclose(said[untold], bare[untold], atol=1e-5)
    changed = (said - bare).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert changed[read.rows].all()


def test_rare_words_become_as_long_as_words(encoder):
    table = encoder.get_input_embeddings().weight
    known = sorted(lesson.TOKENIZER.ids.values())
    with torch.no_grad():
        table[known] *= 3
    before = table.detach().clone()
    lengthen_rare_words(encoder)
    rare = [i for i in range(words.VOCABULARY_SIZE) if i not in (words.START, words.END, *known)]
    assert len(rare) == 16
    assert table[rare].norm(dim=1).tolist() == pytest.approx([before[known].norm(dim=1).mean().item()] * 16, rel=1e-4)
    assert torch.equal(table[known], before[known])
    assert torch.cosine_similarity(table[rare], before[rare]).min() > 1 - 1e-5


def test_a_stopped_run_of_the_base_goes_on_bit_by_bit(scenes):
    torch.manual_seed(5)
    data = Encoded(scenes, torch.randn(24, 4, 16, 16).half(), torch.rand(24, 1, 16, 16).half())
    settings = TrainSettings(steps=4, learning_rate=1e-3, schedule="cosine", warmup_steps=2, clip_norm=1.0)

    def trainer(state=None):
        torch.manual_seed(0)
        return Trainer(BaseObjective(data, CPU), settings, state)

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


def test_validation_of_the_base_draws_the_same_every_time(scenes):
    torch.manual_seed(5)
    objective = BaseObjective(Encoded(scenes, torch.randn(24, 4, 16, 16).half(), torch.ones(24, 1, 16, 16).half()), CPU)
    assert torch.equal(objective.validation(6, 3), objective.validation(6, 3))
    assert not torch.equal(objective.validation(6, 3), objective.validation(6, 4))
    assert objective.losses(seeded(0)).keys() == {"denoising", "whereabouts", "reading"}


def test_a_probe_that_reads_every_look_loses_nothing():
    looks = [Look("plain", "red"), Look("over", "blue", "white", "green")]
    reading = Reading(2, CPU)
    sizes, colours = [3, 7, 7, 7], [None, *COLOURS]
    with torch.no_grad():
        reading.probe.weight.zero_()
        reading.probe.bias.zero_()
    even = sum(math.log(size) for size in sizes)  # knows nothing: every answer is as likely
    assert reading.errors(torch.eye(2), looks).tolist() == pytest.approx([even, even])
    with torch.no_grad():
        for column, look in enumerate(looks):
            answers = [list(BODIES).index(look.body), *map(colours.index, (look.first, look.second, look.dot))]
            for start, answer in zip((0, 3, 10, 17), answers, strict=True):
                reading.probe.weight[start + answer, column] = 50.0
    assert reading.errors(torch.eye(2), looks).max() < 1e-6
    assert reading.errors(torch.eye(2), looks[::-1]).min() > 10
    assert reading.errors(torch.zeros(0, 2), []).tolist() == [0.0]

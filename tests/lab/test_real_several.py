"""Is a subject missing? The measure on pictures whose content is known, and the study with random weights."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch

from infusion_core.errors import InfusionError
from infusion_lab.real import known, several
from infusion_lab.real.dataset import Pair
from infusion_lab.real.known import (
    class_similarity,
    class_thresholds,
    known_pictures,
    look_similarity,
    look_thresholds,
    seen_parts,
)
from infusion_lab.real.presence import PARTS, calibrated, parts, presence, side_by_side
from infusion_lab.real.run import run_real
from infusion_lab.real.setup import Request, real_lab

RED, GREEN, BLUE = torch.eye(3)
WORDS = ("cat", "boot")


class ColourJudges:
    """Judges that see the mean colour of a picture: cats are red, boots green, everything else is blue."""

    def clip_images(self, pictures):
        return pictures.mean((2, 3))

    dino_images = clip_images

    def clip_texts(self, texts):
        return torch.stack([{"a photo of a cat": RED, "a photo of a boot": GREEN, "a photo": BLUE}[t] for t in texts])


def scene(*things, size=0.3, noise=0.0, seed=0):
    """A blue picture (1, 3, 40, 40) with squares (colour, x, y) on it, places as shares of the edge."""
    picture = BLUE.reshape(3, 1, 1).repeat(1, 40, 40)
    for colour, x, y in things:
        left, top, edge = round(40 * x), round(40 * y), round(40 * size)
        picture[:, top : top + edge, left : left + edge] = colour.reshape(3, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    return (picture + noise * torch.rand(picture.shape, generator=generator))[None]


def alone(colour):
    return torch.cat([scene((colour, 0.3, 0.1 * i), noise=0.1, seed=i) for i in range(6)])


MIXED = {  # what is there of (cat, boot)
    (True, True): scene((RED, 0.05, 0.5), (GREEN, 0.65, 0.6)),
    (True, False): scene((RED, 0.1, 0.6), (RED, 0.6, 0.6)),
    (False, True): scene((GREEN, 0.6, 0.1)),
    (False, False): scene(),
}


def test_a_missing_class_is_found_missing():
    judges = ColourJudges()
    thresholds = class_thresholds(judges, [alone(RED), alone(GREEN)], WORDS)
    assert [(t.missed, t.seen) for t in thresholds] == [(0, 0), (0, 0)]
    for there, picture in MIXED.items():
        similar = class_similarity(judges, picture, WORDS)
        assert similar.shape == (1, PARTS, 3)
        found = tuple(bool(presence(similar, i) > thresholds[i].value) for i in range(2))
        assert found == there


def test_a_subject_is_told_from_the_other_by_its_photos():
    judges, photos = ColourJudges(), [alone(RED)[:3], alone(GREEN)[:4]]
    thresholds = look_thresholds(judges, photos)
    assert [(t.missed, t.seen) for t in thresholds] == [(0, 0), (0, 0)]
    for there in ((True, True), (True, False), (False, True)):
        similar = look_similarity(seen_parts(judges, MIXED[there]), [judges.dino_images(p) for p in photos])
        assert similar.shape == (1, PARTS, 2)
        found = tuple(bool(presence(similar, i) > thresholds[i].value) for i in range(2))
        assert found == there


def test_no_photo_is_held_against_itself(monkeypatch):
    taken = []
    monkeypatch.setattr(known, "calibrated", lambda there, gone: taken.append((there.tolist(), gone.tolist())))
    photos = [torch.rand(n, 3, 40, 40, generator=torch.Generator().manual_seed(n)) ** 9 for n in (3, 4)]
    look_thresholds(ColourJudges(), photos)

    def clearest(left, right, own, others):
        """Of the parts of two halves side by side, the most that one is more like its own photos than others."""
        picture = torch.cat([left[:, :, 10:30], right[:, :, 10:30]], dim=2)[None]

        def like(part, them):
            return sum(float(torch.cosine_similarity(part, t.mean((1, 2)), 0)) for t in them) / len(them)

        seen = [part[0].mean((1, 2)) for part in parts(picture)]
        return max(like(part, own) - like(part, others) for part in seen)

    def but(them, i):
        return [one for j, one in enumerate(them) if j != i]

    one, other = photos
    there = [clearest(one[i], other[i], but(one, i), but(other, i)) for i in range(3)]
    gone = [clearest(other[i], other[i].flip(2), one, but(other, i)) for i in range(4)]
    assert taken[0][0] == pytest.approx(there, abs=1e-6)
    assert taken[0][1] == pytest.approx(gone, abs=1e-6)
    there = [clearest(one[i], other[i], but(other, i), but(one, i)) for i in range(3)]
    gone = [clearest(one[i], one[i].flip(2), other, but(one, i)) for i in range(3)]
    assert taken[1][0] == pytest.approx(there, abs=1e-6)
    assert taken[1][1] == pytest.approx(gone, abs=1e-6)


def test_presence_is_the_best_part_against_the_best_other_thing():
    similar = torch.tensor([[[0.9, 0.8, 0.2], [0.3, 0.0, 0.4]], [[0.1, 0.2, 0.3], [0.5, 0.0, 0.1]]])
    assert presence(similar, 0).tolist() == pytest.approx([0.1, 0.4])
    assert presence(similar, 1).tolist() == pytest.approx([-0.1, -0.1])


def test_parts_are_the_whole_and_overlapping_squares():
    picture = torch.arange(64.0).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    found = parts(picture)
    assert len(found) == PARTS == 10
    assert torch.equal(found[0], picture)
    corners = [(int(p[0, 0, 0, 0]) // 8, int(p[0, 0, 0, 0]) % 8) for p in found[1:]]
    assert corners == [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)]
    assert {tuple(p.shape) for p in found[1:]} == {(1, 3, 4, 4)}


@pytest.mark.parametrize("edge", [8, 9, 10])
def test_known_pictures_are_middle_halves_side_by_side(edge):
    one, other = torch.zeros(2, 3, edge, edge), torch.ones(3, 3, edge, edge)
    one[..., edge // 2] = 5
    both, first, second = known_pictures(one, other)
    assert [len(p) for p in (both, first, second)] == [2, 2, 3]
    assert both.shape[2:] == (edge, edge)
    assert (both[..., : edge // 2] != 1).all()
    assert (both[..., edge // 2 :] == 1).all()
    assert (both == 5).any(3).all()
    assert (first == 5).sum(3).unique().item() == 2
    assert (second == 1).all()
    assert torch.equal(side_by_side(one, one.flip(3)), first)


def test_thresholds_separate_and_their_errors_are_those_of_pictures_left_out():
    there, gone = torch.tensor([5.0, 6.0, 7.0]), torch.tensor([1.0, 2.0, 3.0])
    assert calibrated(there, gone).value == 4
    assert (calibrated(there, gone).missed, calibrated(there, gone).seen) == (0, 0)
    found = calibrated(torch.tensor([5.0, 6.0, 7.0, 0.0]), torch.tensor([1.0, 2.0]))
    assert found.value == 3.5
    assert found.missed == 0.25  # 0.0
    assert found.seen == 0
    close = calibrated(torch.tensor([3.0, 10.0]), torch.tensor([1.0, 2.5]))
    assert close.value == 2.75
    assert close.missed == 0.5  # without 3.0 the threshold is 6.25
    assert close.seen == 0.5  # without 2.5 it is 2.0


def test_what_cannot_be_told_apart_is_reported_so():
    same = torch.tensor([1.0, 1.0, 1.0])
    found = calibrated(same, same)
    assert found.missed + found.seen == 1


@pytest.fixture
def request_for(places, tmp_path):
    return Request(
        str(places["model"]), places["dataset"], places["clip"], places["dino"], tmp_path / "out", rare_word="x",
        second_word="y", count=2, limit=1, pairs=3, only=("several",),
    )  # fmt: skip


def test_the_study_runs_and_is_kept(request_for, monkeypatch, capsys):
    run_real(request_for, ["infusion", "lora"])
    out = request_for.out
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert {r["concept"] for r in rows} == {"dog2+fancy_boot"}
    assert {r["method"] for r in rows} == {"known pictures", "base: class word", "infusion", "lora"}
    of_lora = [r for r in rows if r["method"] == "lora"]
    prompt = "a photo of a {0} and a {1}"
    asked = {(f"{name}: {prompt}", m) for name in ("dog2", "fancy_boot") for m in ("missing", "look_missing")}
    assert {(r["prompt"], r["measure"]) for r in of_lora} == {*asked, (prompt, "both")}
    assert {r["seed"] for r in of_lora} == {"0", "1"}
    assert {r["value"] for r in of_lora} <= {"0", "1"}
    value = {(r["prompt"], r["measure"], r["seed"]): float(r["value"]) for r in of_lora}
    for seed in ("0", "1"):
        missing = [value[f"{name}: {prompt}", "missing", seed] for name in ("dog2", "fancy_boot")]
        assert value[prompt, "both", seed] == (sum(missing) == 0)
    of_known = {r["measure"] for r in rows if r["method"] == "known pictures"}
    assert of_known == {f"{kind}_{what}" for kind in ("class", "look") for what in ("threshold", "missed", "seen")}
    joint = [p.name for p in out.rglob("learned/*") if "+" in p.name]
    assert [name.split("-")[0] for name in joint] == ["lora"]
    first, second = json.loads((out / "report.json").read_text())["several"]
    assert first["header"] == ["", "subjects missing, by class", "against the base", "pictures with both classes",
                               "subjects missing, by look"]  # fmt: skip
    assert [line[0] for line in first["lines"]] == ["base: class word", "DreamBooth-LoRA", "Infusion"]
    assert [line[0] for line in second["lines"]] == ["known pictures"]
    assert "Two subjects in one prompt" in (out / "index.html").read_text()
    assert "Two subjects" in capsys.readouterr().out
    monkeypatch.setattr(several, "class_similarity", None)
    monkeypatch.setattr(several, "class_thresholds", None)
    before = (out / "results.csv").read_bytes()
    run_real(request_for, ["infusion", "lora"])
    assert (out / "results.csv").read_bytes() == before


def test_pairs_are_taken_evenly_over_the_list():
    assert several.spread("abcdefgh", 3) == ["a", "c", "f"]
    assert several.spread("ab", 9) == ["a", "b"]


def test_the_second_subject_has_a_rare_word_of_its_own(request_for):
    lab = real_lab(request_for, ["lora"])
    asked = several.Asked.of(lab, lab.data.pairs[0])
    assert [s.rare_word for s in asked.subjects] == ["x", "y"]
    with pytest.raises(InfusionError, match="both rare words are 'x'; give another one"):
        run_real(replace(request_for, second_word="x"))
    with pytest.raises(InfusionError, match=r"'ktn' is 3 tokens of this model; .* \(--second-token\)"):
        run_real(replace(request_for, second_word="ktn"))


def test_what_pairs_need_is_named(request_for):
    lab = real_lab(request_for, ["lora"])
    none = replace(lab, data=replace(lab.data, pairs=()))
    with pytest.raises(InfusionError, match="has no two subjects of different classes here; add photos"):
        several.cells(none)
    one, other = lab.data.subjects
    single = replace(lab, data=replace(lab.data, pairs=(Pair((one, replace(other, photos=other.photos[:1])), ("",)),)))
    with pytest.raises(InfusionError, match="fancy_boot has one photo, --pairs needs two"):
        several.cells(single)


def test_other_thresholds_are_other_cells(request_for):
    def names(limit):
        lab = real_lab(replace(request_for, limit=limit), ["infusion"])
        pair = replace(lab.data.pairs[0], prompts=("a {0} and a {1}",))
        return [c.name for c in several.cells(replace(lab, data=replace(lab.data, pairs=(pair,))))]

    one, three = names(1), names(3)  # whose known pictures are two and three
    assert len(one) == len(three) == 3
    assert not {*one} & {*three}
    assert names(1) == one

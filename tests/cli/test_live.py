"""What a run shows while it goes on: the page, and pictures of several prompts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
import torch
from PIL import Image

from infusion_cli.apt import AptRequest, run_apt
from infusion_cli.train import TrainRequest, run_train
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.errors import InfusionError
from infusion_core.previews import read_strip
from infusion_core.residual_file import load_concept
from infusion_core.training.apt import AptSettings
from infusion_core.training.engine import Trainer
from infusion_core.training.overfitting import MEASURED
from infusion_core.training.residual import ResidualSettings

SETTINGS = ResidualSettings(steps=5, batch_size=1, snapshot_every=3, validation_draws=1, restraint=MEASURED)
PROMPTS = ("a photo of a {}", "a {} at left")


@pytest.fixture(scope="module")
def model():
    """TinyWorld by another name, so that no oracle takes its time; few steps draw its pictures."""
    return replace(load_model("tinyworld"), name="toy", steps=2)


@pytest.fixture
def request_(tmp_path):
    (tmp_path / "photos").mkdir()
    for index, picture in enumerate(training_images(CONCEPTS["ember"])[:2]):
        picture.save(tmp_path / "photos" / f"{index}.png")
    return TrainRequest("toy", tmp_path / "photos", "circle", tmp_path / "a&b.safetensors", SETTINGS)


def drawn(request):
    found = [read_strip(path) for path in sorted(request.places.snapshots.glob("*.png"))]
    return {strip.step: strip for strip in found}


def rows(page):
    """Steps that a page has pictures of, the uppermost first."""
    return [int(step) for step in re.findall(r'<tr><td class="number">(\d+)</td>\s*<td><img', page)]


def test_a_run_without_pictures_has_a_page_of_its_numbers(request_, model):
    run_train(request_, model)
    page = request_.places.page.read_text()
    report = json.loads(request_.places.reports[0].read_text())
    assert "Ended after 5 steps." in page
    assert "http-equiv" not in page
    assert "<img" not in page
    assert page.count("<svg") == 3  # loss, indicator, learning rate, in the page's own ink
    assert page.count("currentColor") > 20
    assert "color-scheme: light dark" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)  # nothing outside of it
    assert f"{report['validation'][-1][1]:.4f}" in page
    assert f"{sum(report['indicator'][-1][1]) / 10:.0%}" in page
    assert drawn(request_) == {}


def test_pictures_are_those_of_the_snapshots_and_change_nothing(request_, model):
    run_train(replace(request_, out=request_.out.with_name("plain.safetensors")), model)
    shown = replace(request_, previews=PROMPTS, preview_every=2)
    run_train(shown, model)
    found, plain = load_concept(shown.out).tensors, load_concept(request_.out.with_name("plain.safetensors")).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    strips = drawn(shown)
    assert list(strips) == [2, 4, 5]
    assert all(strip.prompts == ("a photo of a circle", "a circle at left") for strip in strips.values())
    page = shown.places.page.read_text()
    assert rows(page) == [5, 4, 2]
    assert page.count('src="data:image/jpeg;base64,') == 6

    from infusion_core.concepts import LoadedConcept
    from infusion_core.embedded.sampling import SampleSettings
    from infusion_core.embedded.tasks import draw

    last = LoadedConcept("x", load_concept(shown.places.snapshot(5)))
    again = draw(model, "a circle at left", [last], 1, 1, SampleSettings(2, model.guidance))[0]
    difference = torch.tensor(list(again.tobytes())).float() - torch.tensor(list(strips[5].pictures[1].tobytes()))
    assert difference.abs().mean() < 1  # the file's numbers are half precision


def test_a_stopped_run_says_so_and_a_resumed_one_shows_all_of_it(request_, model, monkeypatch):
    shown = replace(request_, previews=PROMPTS[:1], preview_every=2)
    seen, whole = [], Trainer.run

    def broken(self):
        for report in whole(self):
            yield report
            seen.append(shown.places.page.read_text())
            if report.step == 3:
                raise OSError("the lights went out")

    monkeypatch.setattr(Trainer, "run", broken)
    with pytest.raises(OSError, match="lights"):
        run_train(shown, model)
    assert 'http-equiv="refresh"' in seen[0]
    written = datetime.fromisoformat(re.search(r'<time datetime="([^"]+)">', seen[0])[1])
    assert abs(datetime.now(timezone.utc) - written) < timedelta(hours=1)  # a killed run's page tells its age
    assert rows(seen[0]) == []
    assert rows(seen[1]) == [2]
    assert "time left" in seen[1]
    assert "2 of 5" in seen[1]
    broken_off = shown.places.page.read_text()
    assert "Broken off after step 3." in broken_off
    assert "http-equiv" not in broken_off
    assert "<time" not in broken_off
    monkeypatch.setattr(Trainer, "run", whole)
    run_train(replace(shown, resume=True), model)
    assert rows(shown.places.page.read_text()) == [5, 4, 2]
    run_train(replace(shown, preview_every=0), model)
    assert drawn(shown) == {}  # those of the earlier run would be taken for its own


def test_prompts_are_refused_before_anything_is_read(request_, model):
    with pytest.raises(InfusionError, match=r"the preview prompt 'a dog' must hold {} once"):
        run_train(replace(request_, images=request_.out, previews=("a dog",)), model)


def test_prompts_that_the_model_cannot_read_are_refused_before_training(request_, model):
    for asked, run in (
        (replace(request_, previews=("{} {1}",), preview_every=4), run_train),
        (AptRequest("toy", request_.images, "circle", "", request_.out, AptSettings(), previews=("{} {1}",)), run_apt),
    ):
        with pytest.raises(InfusionError, match=r"prompt 'circle \{1\}' cannot be drawn: .*the word '\{1\}'"):
            run(asked, model)
        assert not asked.places.page.exists()


def test_a_lora_is_drawn_as_it_stands(tmp_path, request_, model):
    settings = AptSettings(steps=2, batch_size=1, rank=2, snapshot_every=1, learning_rate=0.05).unrestrained
    request = AptRequest(
        "toy", request_.images, "circle", "big", tmp_path / "l.safetensors", settings, previews=("a {} on pink",)
    )
    run_apt(request, model)
    strips = drawn(request)
    assert [strip.prompts for strip in strips.values()] == [("a big circle on pink",)] * 2
    first, second = (strip.pictures[0].tobytes() for strip in strips.values())
    assert first != second
    assert rows(request.places.page.read_text()) == [2, 1]
    assert isinstance(strips[1].pictures[0], Image.Image)

"""The oracle's figures for trained concepts, one to three in a prompt: the embedded host's and ComfyUI's."""

from __future__ import annotations

from statistics import mean

import pytest

from comfyui_process.server import Server
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import CONCEPTS, score, training_images
from infusion_core.embedded.tinyworld.captions import UNSEEN_ASPECTS, caption, unseen_scenes
from infusion_core.residual_file import save_concept
from infusion_core.training.residual import ResidualSettings
from infusion_lab.studies.several import scenes_of

from .both import embedded, hosted

GROUP = ("ember", "harlequin", "tent")


@pytest.fixture(scope="module")
def trained(server: Server) -> None:
    """Concepts in the server's models/infusion, trained just long enough to be seen."""
    model = load_model("tinyworld")
    for name in GROUP:
        concept = CONCEPTS[name]
        trainer = trainer_for(model, training_images(concept), concept.shape, ResidualSettings(steps=40))
        for _ in trainer.run():
            pass
        save_concept(server.base / "models" / "infusion" / f"{name}.safetensors", trainer.learned())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_concept_and_scene_error(server: Server, trained: None, count: int) -> None:
    names = list(GROUP[:count])
    group = [CONCEPTS[name] for name in names]
    errors: dict[str, list[tuple[float, float]]] = {"host": [], "embedded": [], "base": []}
    for scene in scenes_of(group, 2) if count > 1 else unseen_scenes(group[0], 2):
        prompt = caption(scene, UNSEEN_ASPECTS)
        latents = {
            "host": hosted(server, prompt, names, steps=10),
            "embedded": embedded(server, prompt, names, steps=10),
            "base": embedded(server, prompt, [], steps=10),
        }
        for who, latent in latents.items():
            (picture,) = load_model("tinyworld").decode(latent)
            scores = [score(picture, scene.wearing(group), concept) for concept in group]
            errors[who].append((mean(s.concept_error for s in scores), mean(s.scene_error for s in scores)))
    for ours, theirs in zip(errors["host"], errors["embedded"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert mean(e for e, _ in errors["host"]) < mean(e for e, _ in errors["base"]) - 0.02

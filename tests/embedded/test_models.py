"""Any local diffusers folder: SD1.x, SD2.x with v-prediction, SDXL with two encoders."""

from __future__ import annotations

import hashlib
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw, trainer_for
from infusion_core.embedded.text import Encoder, TextPath, WordTokenizer
from infusion_core.errors import InfusionError
from infusion_core.training.residual import ResidualSettings

from .factories import save_model


def weights_hash(model):
    digest = hashlib.sha256()
    for module in (model.denoiser.unet, model.vae, *(e.model for e in model.text.encoders)):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def photos(count=2):
    return [Image.new("RGB", (40, 30), (200, 30 * i, 90)) for i in range(count)]


@pytest.mark.parametrize(("kind", "context"), [("sd1", 768), ("sd2", 1024), ("sdxl", 2048)])
@pytest.mark.parametrize("word", ["dog", "cat bear"])
def test_training_and_drawing_leave_the_base_untouched(tmp_path, kind, context, word):
    model = load_model(str(save_model(tmp_path / kind, kind, context)), "cpu")
    assert model.denoiser.base.architecture == kind
    assert model.denoiser.prediction == ("v_prediction" if kind == "sd2" else "epsilon")
    before = weights_hash(model)
    trainer = trainer_for(model, photos(), word, ResidualSettings(steps=2, batch_size=2))
    list(trainer.run())
    learned = trainer.learned()
    assert learned.tokens == (1 if word == "dog" else 5)  # the test tokenizer: c a t bea r
    assert all(t.abs().sum() > 0 for t in learned.tensors.values())
    assert all(p.grad is None for p in model.denoiser.unet.parameters())
    settings = SampleSettings(2, 3.0)
    with_concept = draw(model, f"a photo of a {word}", [LoadedConcept("x", learned, 5.0)], 1, 0, settings)
    without = draw(model, f"a photo of a {word}", [], 1, 0, settings)
    assert with_concept[0].tobytes() != without[0].tobytes()
    assert weights_hash(model) == before


def test_sites_have_comfyui_names(sd1):
    names = [site.name for site in sd1.denoiser.base.sites]
    assert names == ["input.1.0", "input.2.0", "input.4.0", "input.5.0", "middle.0.0",
                     "output.3.0", "output.4.0", "output.5.0", "output.6.0", "output.7.0", "output.8.0"]  # fmt: skip
    assert list(sd1.denoiser.base.places("block")) == ["down.0", "down.1", "mid", "up.1", "up.2"]


def test_a_word_is_found_by_tokens_not_by_letters(sd1):
    encoded = sd1.text.encode("a dog on the dogbeach", {"rex": "dog"})
    assert encoded.spans == (((2,),),)
    spelled = sd1.text.encode("a cat on the beach", {"tom": "cat"})
    assert spelled.spans == (((2, 3, 4),),)


@pytest.mark.parametrize("name", ["nothing-here", "empty"])
def test_a_folder_that_is_no_model(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InfusionError, match="not a diffusers Stable Diffusion folder"):
        load_model(str(tmp_path / name))


def test_incomplete_and_damaged_folders(tmp_path, sd1_folder):
    shutil.copytree(sd1_folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InfusionError, match=r"unet/diffusion_pytorch_model\.safetensors is damaged .*get it again"):
        load_model(str(tmp_path / "cut"))
    shutil.copytree(sd1_folder, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "tokenizer")
    with pytest.raises(InfusionError, match=r"tokenizer/vocab\.json is missing; .* get it again"):
        load_model(str(tmp_path / "bare"))


def test_a_word_that_the_tokenizer_does_not_see_is_no_silence(sd1):
    """CLIP splits 't, 's, 'd off: the letters of 'toy' say toy, its tokens say 't and oy."""
    for prompt in ("a 'toy' on a table", "a toy and a 'toy'"):
        with pytest.raises(InfusionError, match="does not see every 'toy' of the prompt as a word; put spaces around"):
            sd1.text.encode(prompt, {"x": "toy"})
    assert sd1.text.encode("a toy and a ' toy '", {"x": "toy"}).spans[0] == ((2, 3, 4), (10, 11, 12))
    assert sd1.text.encode("a model 3 car", {"x": "model3"}).spans == ((),)


def test_a_rounded_noise_level_is_the_same_timestep(sd1, monkeypatch):
    seen = []
    monkeypatch.setattr(type(sd1.denoiser), "forward", lambda *given: seen.append(given[2].tolist()))
    for rounding in (1 - 1e-5, 1, 1 + 1e-5):
        sigma = sd1.denoiser.sigmas[[0, 500, 999]] * rounding
        sd1.denoiser.predict(sd1.noise(3, 0), sigma, None, None)
    assert seen == [[0, 500, 999]] * 3


def test_words_the_encoder_cannot_take(sd1, tinyworld):
    with pytest.raises(InfusionError, match="80 tokens long, 75 fit"):
        trainer_for(sd1, photos(), "x" * 80, ResidualSettings())
    with pytest.raises(InfusionError, match="is empty"):
        trainer_for(sd1, photos(), "  ", ResidualSettings())
    with pytest.raises(InfusionError, match=r"does not know the word 'cricle'; try: circle"):
        trainer_for(tinyworld, photos(), "cricle", ResidualSettings())


def test_a_concept_of_another_model_is_refused(sd1, tinyworld):
    trainer = trainer_for(sd1, photos(), "dog", ResidualSettings(steps=1))
    with pytest.raises(InfusionError, match="made for sd1, not tinyworld"):
        draw(tinyworld, "a circle", [LoadedConcept("x", trainer.learned())], 1, 0, SampleSettings(1))


def test_encoding_is_the_models_resolution(sd1):
    assert sd1.resolution == 32
    assert sd1.encode(photos()).shape == (2, 4, 8, 8)
    assert torch.equal(sd1.noise(2, 3)[1], sd1.noise(1, 4)[0])


class Pooling:
    """A text model of one width, with or without a projection."""

    device = torch.device("cpu")

    def __init__(self, value, projected):
        self.value, self.projected = value, projected

    def __call__(self, ids, output_hidden_states):
        states = torch.full((*ids.shape, 3), self.value)
        return SimpleNamespace(last_hidden_state=states, text_embeds=states[:, 0] * 10 if self.projected else None)


@pytest.mark.parametrize("first", [True, False])
def test_the_pooled_text_is_that_of_the_encoder_which_pools_wherever_it_stands(first):
    tokenizer = WordTokenizer({"dog": 2}, 0, 1, 5)
    encoders = [Encoder(tokenizer, Pooling(1.0, True), pools=True), Encoder(tokenizer, Pooling(2.0, True))]
    text = TextPath(encoders if first else encoders[::-1], {"time_ids": torch.zeros(1, 6)})
    extras = text.encode("dog").conditioning.extras
    assert extras["text_embeds"].tolist() == [[10.0] * 3]
    assert extras["time_ids"].shape == (1, 6)
    assert "text_embeds" not in TextPath(encoders[1:]).encode("dog").conditioning.extras


def test_a_word_list_may_grow_and_names_what_it_lacks():
    tokenizer = WordTokenizer({"dog": 2, "cat": 3}, 0, 1, 6)
    assert tokenizer.frame(tokenizer.split("Dog, cat.")[0]) == [0, 2, 3, 1, 1, 1]
    assert tokenizer.with_words({"v1": 9}).split("v1 cat") == ([9, 3], [True, True])
    with pytest.raises(InfusionError, match="does not know the word 'v1'; try: dog, cat"):
        tokenizer.split("v1")

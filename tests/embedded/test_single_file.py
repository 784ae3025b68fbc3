"""One-file checkpoints: the numbers of the folder they were made from, without the hub, and clear refusals."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from infusion_core.embedded.model import load_model
from infusion_core.errors import InfusionError

from .factories import save_model
from .ldm import save_single_file


@pytest.fixture(scope="module")
def sd1_file(tmp_path_factory, sd1_folder):
    return save_single_file(sd1_folder, "sd1", tmp_path_factory.mktemp("files") / "dreamlike.safetensors")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No local hub cache, and every attempt to reach the network is noted (and fails)."""
    asked = []

    def refuse(*args, **_):
        asked.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def weights(model):
    """The weights of every network of a model."""
    return [net.state_dict() for net in (model.denoiser.unet, model.vae, *(e.model for e in model.text.encoders))]


def outputs(model):
    """What the model's networks make of fixed inputs."""
    encoded = model.text.encode("a photo of a dog on the beach", {"x": "dog"}).conditioning
    latent = model.noise(1, 0)
    with torch.no_grad():
        predicted = model.denoiser.unet(latent, 500, encoded.context, added_cond_kwargs=dict(encoded.extras)).sample
        decoded = model.vae.decode(latent).sample
        mean = model.vae.encode(decoded).latent_dist.mean
    return [encoded.context, *encoded.extras.values(), predicted, decoded, mean]


@pytest.mark.parametrize(("kind", "context"), [("sd1", 768), ("sd2", 1024), ("sdxl", 2048)])
def test_a_file_is_the_folder_it_was_made_from(tmp_path, offline, kind, context):
    folder = save_model(tmp_path / kind, kind, context)
    file = save_single_file(folder, kind, tmp_path / "one.safetensors")
    config = tmp_path / "config"
    shutil.copytree(folder, config, ignore=shutil.ignore_patterns("*.safetensors"))
    ours = load_model(str(file), "cpu", config)
    theirs = load_model(str(folder), "cpu")
    assert (ours.name, ours.denoiser.base) == ("one", theirs.denoiser.base)
    for one, other in zip(weights(ours), weights(theirs), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    for one, other in zip(outputs(ours), outputs(theirs), strict=True):  # equal weights may lie differently in memory
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not offline


def test_without_a_config_the_hub_is_not_asked(sd1_file, offline):
    with pytest.raises(InfusionError, match=r"give --config FOLDER, .*hf download stable-diffusion-v1-5"):
        load_model(str(sd1_file))
    assert not offline


def test_a_config_in_the_local_hub_cache_is_found(sd1_file, sd1_folder, offline, tmp_path):
    cached = tmp_path / "hub" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    shutil.copytree(sd1_folder, cached / "snapshots" / "abc", ignore=shutil.ignore_patterns("*.safetensors"))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert load_model(str(sd1_file), "cpu").name == "dreamlike"
    assert not offline


def test_stable_diffusion_2_is_not_guessed(tmp_path, offline):
    file = save_single_file(save_model(tmp_path / "sd2", "sd2", 1024), "sd2", tmp_path / "two.safetensors")
    with pytest.raises(InfusionError, match=r"noise or v; give --config FOLDER, a diffusers folder of .* 2\.x"):
        load_model(str(file))


def test_files_that_are_no_checkpoint(tmp_path, sd1_file, sd1_folder):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(sd1_file.read_bytes()[:-1000])
    with pytest.raises(InfusionError, match="damaged or not a safetensors file"):
        load_model(str(cut), "cpu", sd1_folder)
    with pytest.raises(InfusionError, match="not a whole Stable Diffusion"):
        load_model(str(sd1_folder / "unet" / "diffusion_pytorch_model.safetensors"), "cpu", sd1_folder)
    (tmp_path / "old.ckpt").write_bytes(b"x")
    with pytest.raises(InfusionError, match=r"old\.ckpt is a pickle.*give a \.safetensors version"):
        load_model(str(tmp_path / "old.ckpt"), "cpu", sd1_folder)


def test_a_config_of_another_model_is_refused(tmp_path, sd1_file, sd1_folder):
    with pytest.raises(InfusionError, match=r"has no model_index\.json"):
        load_model(str(sd1_file), "cpu", tmp_path)
    with pytest.raises(InfusionError, match=r"text_encoder in .* numbers, .* give the config of this model"):
        load_model(str(sd1_file), "cpu", save_model(tmp_path / "sd2", "sd2", 1024))
    with pytest.raises(InfusionError, match="--config is for single-file checkpoints"):
        load_model(str(sd1_folder), "cpu", sd1_folder)
    deeper = tmp_path / "deeper"
    shutil.copytree(sd1_folder, deeper)
    config = json.loads((deeper / "text_encoder" / "config.json").read_text())
    (deeper / "text_encoder" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InfusionError, match=r"text_encoder in .* holds .* numbers"):
        load_model(str(sd1_file), "cpu", deeper)


def test_a_v_prediction_file_needs_such_a_config(tmp_path, sd1_file, sd1_folder):
    file = tmp_path / "v.safetensors"
    save_file(load_file(sd1_file) | {"v_pred": torch.zeros(1)}, file)
    with pytest.raises(InfusionError, match=r"predicts v, the config in .* does not"):
        load_model(str(file), "cpu", sd1_folder)

"""What a model's folder can hold that is no model: refused by naming the file, before memory is spent on it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from infusion_core.embedded.clip_files import clip_tokenizer
from infusion_core.embedded.model import load_model
from infusion_core.errors import InfusionError

from .tiny import KINDS, save_tiny

NET = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return {kind: save_tiny(root / kind, kind) for kind in KINDS}


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole["sd1"], tmp_path / "sd1")


@pytest.fixture
def words(whole, tmp_path):
    return shutil.copytree(whole["words"], tmp_path / "words")


@pytest.fixture
def two(whole, tmp_path):
    return shutil.copytree(whole["sdxl"], tmp_path / "sdxl")


def refused(folder, match):
    with pytest.raises(InfusionError, match=match) as caught:
        load_model(str(folder), "cpu")
    assert str(folder) in str(caught.value)
    assert torch.is_grad_enabled()  # nothing of a broken-off load stays behind


def edit(file, **changes):
    told = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**told, **changes}.items() if v != "gone"}))


def weights(model):
    """All parameters of a network by name, and constants that no file holds."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.parametrize("kind", KINDS[1:])
def test_networks_are_those_that_the_libraries_load(whole, kind):
    folder, ours = whole[kind], load_model(str(whole[kind]), "cpu")
    texts = [CLIPTextModel.from_pretrained(folder / "text_encoder")]
    if kind == "sdxl":
        texts.append(CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"))
    theirs = [
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        *texts,
    ]
    networks = [ours.denoiser.unet, ours.vae, *(e.model for e in ours.text.encoders)]
    for one, other in zip(networks, theirs, strict=True):
        assert weights(one).keys() == weights(other).keys()
        assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())
    ids = torch.arange(77)[None]
    for encoder, text in zip(ours.text.encoders, texts, strict=True):
        assert torch.equal(encoder.model(ids).last_hidden_state, text.eval()(ids).last_hidden_state)
    theirs_scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", steps_offset=0)
    assert torch.equal(ours.scheduler.alphas_cumprod, theirs_scheduler.alphas_cumprod)


@pytest.mark.parametrize("source", ["vocab.json", "tokenizer.json"])
def test_the_tokenizer_is_the_one_that_transformers_makes(folder, source):
    theirs = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    if source == "tokenizer.json":
        (folder / "tokenizer" / "vocab.json").unlink()
        (folder / "tokenizer" / "merges.txt").unlink()
    ours, length = clip_tokenizer(folder / "tokenizer", 600, 77)
    texts = ["a photo of a dog on the beach", "Überall 猫, it's 12!", "  <|endoftext|> x\ny ", "éé \x00 🐕", "dogbeach"]
    assert [ours(t).input_ids for t in texts] == [theirs(t).input_ids for t in texts]
    assert length == 77


def test_words_that_a_tokenizer_grew_by_are_kept(folder):
    grown = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    grown.add_tokens(["<my-dog>", "<my-cat>"])
    grown.save_pretrained(folder / "tokenizer")
    ids = load_model(str(folder), "cpu").text.encoders[0].tokenizer.split("a <my-cat> dog")[0]
    assert ids == grown("a <my-cat> dog", add_special_tokens=False).input_ids


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("fault", ["half", "more", "shape", "integers"])
def test_every_tensor_is_accounted_for(folder, part, fault):
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(n for n in tensors if "bias" in n)[0]
    if fault == "half":
        left = dict(list(tensors.items())[::2])
        says = (
            rf"{file.name} lacks {len(tensors) - len(left)} of the {len(tensors)} tensors .*the first: '.*get the model"
        )
        tensors = left
    elif fault == "more":
        tensors["another.weight"] = torch.zeros(3)
        says = rf"{file.name} holds 1 tensors that .* \(the first: 'another\.weight'\)"
    elif fault == "shape":
        tensors[name] = tensors[name][None]
        says = (
            rf"{file.name}: 1 tensors are of another shape .*'(text_model\.)?{name.removeprefix('text_model.')}', \[1, "
        )
    else:
        tensors[name] = tensors[name].to(torch.int64)
        says = rf"{file.name}: '{name}' is of type I64, weights are floating-point"
    save_file(tensors, file)
    refused(folder, says)


def test_names_that_versions_of_the_libraries_differ_in(folder):
    want = load_model(str(folder), "cpu")
    vae, text = folder / "vae" / NET, folder / "text_encoder" / "model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(vae)
    for new, name in old.items():
        tensors = {n.replace(f".{new}.", f".{name}."): t for n, t in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, vae)
    tensors = load_file(text)
    prefixed = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in tensors.items()}
    prefixed["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for names in (prefixed, {n.removeprefix("text_model."): t for n, t in prefixed.items()}):
        save_file(names, text)
        found = load_model(str(folder), "cpu")
        assert torch.equal(found.text.encode("dog").conditioning.context, want.text.encode("dog").conditioning.context)
        assert all(torch.equal(t, weights(want.vae)[n]) for n, t in weights(found.vae).items())


def test_shards_and_half_precision_files(folder):
    want = weights(load_model(str(folder), "cpu").denoiser.unet)
    file = folder / "unet" / NET
    tensors = load_file(file)
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for shard in names:
        save_file({n: tensors[n] for n in tensors if where[n] == shard}, folder / "unet" / shard)
    file.unlink()
    index = folder / "unet" / f"{NET}.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    found = weights(load_model(str(folder), "cpu").denoiser.unet)
    assert all(torch.equal(tensor, want[name]) for name, tensor in found.items())
    index.write_text(json.dumps({"weight_map": dict.fromkeys(where, "../vae/x.safetensors")}))
    refused(folder, r"index\.json does not list .* of its own folder")
    index.write_text(json.dumps({"weight_map": where | {"x": "diffusion_pytorch_model-3.safetensors"}}))
    refused(folder, r"diffusion_pytorch_model-3\.safetensors is missing")
    save_file({n: t.half() for n, t in tensors.items()}, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    found = weights(load_model(str(folder), "cpu").denoiser.unet)
    assert all(torch.equal(tensor, want[name].half().float()) for name, tensor in found.items())


@pytest.mark.parametrize("end", [".bin", ".ckpt", ".non_ema.safetensors"])
def test_other_files_of_weights_are_named_with_what_to_do(folder, end):
    file = folder / "unet" / NET
    file.rename(folder / "unet" / f"diffusion_pytorch_model{end}")
    says = "copy the one you want" if end.endswith("safetensors") else "is a pickle, .*safetensors version, or convert"
    refused(folder, rf"{NET} is missing and 'diffusion_pytorch_model{end}' beside it .*{says}")


def test_a_header_that_is_too_large_is_not_read(folder):
    file = folder / "unet" / NET
    file.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    refused(folder, "is damaged or not a safetensors file .*header is too large")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 100_000, "no usable JSON .*nested too deeply"),
        (b'{"sample_size": NaN}', "no usable JSON .*NaN"),
        (b'{"norm_eps": 1e999}', "no usable JSON .*1e999"),
        (b"[1]", "holds no JSON object"),
        (b" " * (2**20 + 1), "larger than 1,048,576 bytes"),
        (b'{"a": ', "no usable JSON"),
        (b"\xff\xff", "no usable JSON"),
    ],
)
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "infusion.json"])
def test_json_that_is_none(folder, file, data, says):
    (folder / file).write_bytes(data)
    refused(folder, rf"{file} .*{says}.*; get")


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("unet/config.json", {"layers_per_block": 1000}, "layers_per_block is 1000, it must be a whole number from 1"),
        ("unet/config.json", {"layers_per_block": 64}, "asks for many more layers than the"),
        ("unet/config.json", {"transformer_layers_per_block": 64}, "asks for many more layers than the"),
        ("unet/config.json", {"block_out_channels": [4, 16384]}, "tensors are of another shape"),
        ("unet/config.json", {"block_out_channels": [8] * 9}, "block_out_channels is .* a list of 1 to 8"),
        ("unet/config.json", {"norm_num_groups": 3}, "describes no UNet2DConditionModel"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "_class_name is .* must be one of"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep', which is not"),
        ("unet/config.json", {"down_block_types": ["AttnDownBlock2D"] * 2}, "down_block_types is"),
        ("unet/config.json", {"sample_size": "gone"}, "does not say sample_size"),
        ("unet/config.json", {"sample_size": 10**9}, "sample_size is 1000000000"),
        ("unet/config.json", {"in_channels": 9}, "in_channels is 9; inpainting"),
        ("unet/config.json", {"out_channels": 8}, "out_channels is 8"),
        ("unet/config.json", {"cross_attention_dim": 16}, "is 16, the text encoders beside it give 8"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "does not say how wide its pooled text"),
        ("vae/config.json", {"_class_name": "DiffusionPipeline"}, 'one of "AutoencoderKL", "AutoencoderTiny"'),
        ("vae/config.json", {"_class_name": ["x"]}, "must be one of"),
        ("vae/config.json", {"latent_channels": 16}, "latent_channels is 16"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor is 0"),
        ("text_encoder/config.json", {"model_type": "bert"}, 'model_type is "bert"'),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("text_encoder/config.json", {"num_hidden_layers": 64}, "asks for many more layers than the|lacks"),
        ("text_encoder/config.json", {"vocab_size": 2**20}, "another shape"),
        ("text_encoder/config.json", {"eos_token_id": None}, "eos_token_id is null"),
        ("text_encoder/config.json", {"layer_norm_eps": -1}, "layer_norm_eps is -1"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": True}, "num_train_timesteps is true"),
        ("scheduler/scheduler_config.json", {"beta_start": -1}, "beta_start is -1"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.999}, "noise levels that are not 1,000 finite, rising"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr to false"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1] * 9}, "noise levels that are not 1,000"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predict 'sample' are not supported"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name is"),
        ("infusion.json", {"steps": 10**9}, "steps is 1000000000, it must be a whole number from 1 to 1000"),
        ("infusion.json", {"guidance": "x"}, "guidance is \"x\""),
        ("infusion.json", {"temperature": 0}, "temperature is 0"),
        ("infusion.json", {"zoom": 0.5}, "zoom is 0.5"),
        ("infusion.json", {"canvas": "red"}, "canvas is \"red\""),
        ("infusion.json", {"device": "hub"}, "device is \"hub\""),
    ],
)  # fmt: skip
def test_configs_are_bounded(folder, file, changes, says):
    edit(folder / file, **changes)
    refused(folder, says)


def test_xl_parts_that_do_not_belong_together(two):
    shutil.copytree(two, two.parent / "b")
    edit(two / "unet" / "config.json", addition_embed_type=None)
    refused(two, "asks for pooled text of width None, the text encoders beside it give 8")
    other = two.parent / "b"
    edit(other / "tokenizer_2" / "tokenizer_config.json", model_max_length=50)
    refused(other, "tokenizer_2 has other words than")


def clip(folder):
    return folder / "tokenizer"


def test_a_tokenizer_without_files(folder):
    shutil.rmtree(clip(folder))
    clip(folder).mkdir()
    refused(folder, r"tokenizer/vocab\.json is missing")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: {}, "no list of words"),
        (lambda v: dict.fromkeys(v, 1), "no list of words"),
        (lambda v: v | {"dog</w>": "7"}, "no list of words"),
        (lambda v: v | {"dog</w>": 600}, "numbers its words up to 600, the text encoder knows 600"),
        (lambda v: {w.replace("</w>", ""): i for w, i in v.items()}, "no CLIP vocabulary .*lacks 256 of 256 bytes"),
        (lambda v: {w: i for w, i in v.items() if w != "dog</w>"}, "merges tokens that are not among its words"),
        (lambda v: {w: i for w, i in v.items() if "start" not in w}, "bos_token '<|startoftext|>' is not among"),
    ],
)
def test_words_that_are_not_the_text_encoders(folder, change, says):
    (clip(folder) / "tokenizer.json").unlink()
    file = clip(folder) / "vocab.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    refused(folder, says.replace("|", r"\|"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_max_length": 1}, "model_max_length is 1, CLIP's is 77"),
        ({"model_max_length": "many"}, "model_max_length is 'many'"),
        ({"eos_token": "<|startoftext|>"}, "start and end are one token"),
        ({"pad_token": 5}, "pad_token is no token"),
        ({"added_tokens_decoder": {"599": {"content": "new"}}}, "adds tokens that are not next in its vocabulary"),
        ({"added_tokens_decoder": {"x": 1}}, "added_tokens_decoder is not a list of tokens"),
        ({"added_tokens_decoder": {"528": {"content": 7}}}, "adds tokens that are no text"),
    ],
)
def test_what_a_tokenizer_says_of_itself(folder, changes, says):
    edit(clip(folder) / "tokenizer_config.json", **changes)
    refused(folder, says)


def test_of_tokenizer_json_only_words_and_merges_are_taken(folder):
    want = load_model(str(folder), "cpu").text.encoders[0].tokenizer.split("a dog")
    file = clip(folder) / "tokenizer.json"
    (clip(folder) / "vocab.json").unlink()
    evil = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "aaaa"}
    edit(file, normalizer=evil, pre_tokenizer={"type": "Split", "pattern": {"Regex": "(.*)*x"}})
    assert load_model(str(folder), "cpu").text.encoders[0].tokenizer.split("a dog") == want
    edit(file, model=[1])
    refused(folder, r"tokenizer\.json holds no words and merges")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"words": {"dog": 2, "cat": 2}}, "does not give each word a number of its own"),
        ({"words": {"dog": 2, "cat": 600}}, "does not give each word a number of its own below 600"),
        ({"words": {"dog": 2, "cat": "3"}}, "does not give each word a number"),
        ({"words": {"dog": 0, "cat": 3}}, "does not give each word a number"),
        ({"words": {"Dog": 2, "cat": 3}}, "words is .*small letters"),
        ({"words": {"a dog": 2, "cat": 3}}, "words is"),
        ({"words": {}}, "words is"),
        ({"words": ["dog"]}, "words is"),
        ({"length": 78}, "length is 78, it must be a whole number from 3 to 77"),
        ({"length": 2}, "length is 2"),
        ({"start": -1}, "start is -1"),
        ({"end": 0}, "end is 0, .* and not 0"),
        ({"end": "gone"}, "does not say end"),
    ],
)
def test_word_lists(words, changes, says):
    edit(words / "tokenizer" / "words.json", **changes)
    refused(words, rf"words\.json.*{says}")


def test_a_text_encoder_that_tells_nothing_apart_is_refused(tmp_path):
    folder = save_tiny(tmp_path / "words", "words")
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    silenced = [name for name in tensors if "final_layer_norm" in name]
    assert silenced
    save_file({k: torch.zeros_like(v) if k in silenced else v for k, v in tensors.items()}, file, {"format": "pt"})
    with pytest.raises(InfusionError, match=r"the text encoder of .*words cannot tell .* its weights are damaged"):
        load_model(str(folder), "cpu")

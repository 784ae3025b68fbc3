"""LoRA files of every style against the libraries that write and read them."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from infusion_core.embedded.adapters import load_variant, read_lora, with_lora
from infusion_core.embedded.model import load_model
from infusion_core.errors import InfusionError
from infusion_core.lora_file import parse_lora

from .factories import save_model
from .ldm import save_single_file

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "time_emb_proj", "ff.net.2", "conv_in", "conv"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def adapted(network, targets, rank=3, alpha=5, seed=0):
    """A copy with a peft adapter in it, of random numbers."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
    return get_peft_model(deepcopy(network), config)


def merged(peft_model):
    """The weights that peft makes of it, by path."""
    return deepcopy(peft_model).merge_and_unload().state_dict()


def pairs(peft_model):
    """The adapter's matrices by the path of their module."""
    found = {}
    for key, tensor in get_peft_model_state_dict(peft_model).items():
        path, _, which = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        found.setdefault(path, {})["down" if which == "lora_A" else "up"] = tensor.contiguous()
    return found


def kohya(found, prefix, alpha, names=None):
    out = {}
    for path, matrices in found.items():
        name = prefix + (names or {}).get(path, path).replace(".", "_")
        out |= {f"{name}.lora_{which}.weight": tensor for which, tensor in matrices.items()}
        out[f"{name}.alpha"] = torch.tensor(float(alpha))
    return out


def same_weights(network, expected):
    own = network.state_dict()
    assert own.keys() == expected.keys()
    for name, weight in own.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def base(request, tmp_path_factory):
    widths = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
    folder = save_model(tmp_path_factory.mktemp("adapters") / request.param, request.param, widths[request.param])
    return load_model(str(folder), "cpu")


def text_paths(found):
    """As files name the text encoder's modules, whatever this version of transformers calls them."""
    return {path: f"text_model.{path.removeprefix('text_model.')}" for path in found}


def test_kohyas_files_with_text_encoders_make_the_weights_that_peft_makes(base, tmp_path):
    unet = adapted(base.denoiser.unet, TARGETS)
    tensors = kohya(pairs(unet), "lora_unet_", 5)
    texts = [adapted(encoder.model, TEXT, seed=i + 1) for i, encoder in enumerate(base.text.encoders)]
    prefixes = ["lora_te1_", "lora_te2_"] if len(texts) == 2 else ["lora_te_"]
    for text, prefix in zip(texts, prefixes, strict=True):
        tensors |= kohya(pairs(text), prefix, 5, text_paths(pairs(text)))
    before = deepcopy(base.denoiser.unet.state_dict())
    safetensors.torch.save_file(tensors, tmp_path / "kohya.safetensors")
    model = with_lora(base, read_lora(tmp_path / "kohya.safetensors"), "kohya")
    same_weights(model.denoiser.unet, merged(unet))
    for encoder, text in zip(model.text.encoders, texts, strict=True):
        same_weights(encoder.model, merged(text))
    same_weights(base.denoiser.unet, before)  # the base is as it was


def test_a_strength_scales_the_change_and_untouched_networks_are_shared(base):
    unet = adapted(base.denoiser.unet, ["to_q", "to_k"])
    model = with_lora(base, parse_lora(kohya(pairs(unet), "lora_unet_", 5)), "half", 0.5)
    whole, own = merged(unet), base.denoiser.unet.state_dict()
    same_weights(model.denoiser.unet, {name: own[name] + (whole[name] - own[name]) / 2 for name in own})
    assert all(a.model is b.model for a, b in zip(model.text.encoders, base.text.encoders, strict=True))


def test_pefts_own_files(base, tmp_path):
    unet = adapted(base.denoiser.unet, TARGETS)
    unet.save_pretrained(tmp_path)
    model = with_lora(base, read_lora(tmp_path / "adapter_model.safetensors"), "peft")
    same_weights(model.denoiser.unet, merged(unet))


def test_a_rank_stabilised_adapter_is_scaled_as_peft_scales_it(sd1, tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=3, target_modules=["to_q"], init_lora_weights=False, use_rslora=True)
    unet = get_peft_model(deepcopy(sd1.denoiser.unet), config)
    unet.save_pretrained(tmp_path)
    same_weights(with_lora(sd1, read_lora(tmp_path / "adapter_model.safetensors"), "x").denoiser.unet, merged(unet))
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(told | {"alpha_pattern": {"to_q": 2}}))
    with pytest.raises(InfusionError, match="layers have alphas of their own, which are not read; merge it first"):
        read_lora(tmp_path / "adapter_model.safetensors")


def test_words_that_come_with_a_lora_are_left_out_and_lycoris_norms_are_added(sd1):
    path = "mid_block.attentions.0.norm"
    added = torch.randn(32, generator=torch.Generator().manual_seed(0))
    tensors = {"bundle_emb.word.string_to_param.*": torch.zeros(2, 768),
               f"lora_unet_{path.replace('.', '_')}.w_norm": added}  # fmt: skip
    unet, own = with_lora(sd1, parse_lora(tensors), "lycoris").denoiser.unet, sd1.denoiser.unet.state_dict()
    same_weights(unet, {name: w + (added if name == f"{path}.weight" else 0) for name, w in own.items()})


def test_a_bias_for_a_layer_without_one_is_refused(sd1):
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q.diff_b"
    with pytest.raises(InfusionError, match=r"does not fit this model \(it has no bias\)"):
        with_lora(sd1, parse_lora({key: torch.zeros(32)}), "mine")


def test_diffusers_files_with_their_alpha(base, tmp_path):
    unet, text = adapted(base.denoiser.unet, ["to_q", "to_k", "to_out.0"]), adapted(base.text.encoders[0].model, TEXT)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(unet), get_peft_model_state_dict(text),
        unet_lora_adapter_metadata={"r": 3, "lora_alpha": 5},
        text_encoder_lora_adapter_metadata={"r": 3, "lora_alpha": 5},
    )  # fmt: skip
    model = with_lora(base, read_lora(tmp_path / "pytorch_lora_weights.safetensors"), "diffusers")
    same_weights(model.denoiser.unet, merged(unet))
    same_weights(model.text.encoders[0].model, merged(text))


def test_diffusers_older_keys(base):
    """Those that its own conversion of kohya's files still gives."""
    unet, text = adapted(base.denoiser.unet, ["to_q", "to_k", "to_out.0"]), adapted(base.text.encoders[0].model, TEXT)
    tensors = kohya(pairs(unet), "lora_unet_", 3) | kohya(pairs(text), "lora_te_", 3, text_paths(pairs(text)))
    converted, _ = _convert_non_diffusers_lora_to_diffusers(dict(tensors))
    assert any("processor.to_q_lora.up" in key for key in converted)
    lora = parse_lora({key: tensor for key, tensor in converted.items() if not key.endswith("alpha")})
    model = with_lora(base, lora, "older")
    expected = parse_lora(tensors)
    same_weights(model.denoiser.unet, with_lora(base, expected, "kohya").denoiser.unet.state_dict())
    same_weights(model.text.encoders[0].model, with_lora(base, expected, "kohya").text.encoders[0].model.state_dict())


def test_xl_files_in_the_original_layout_are_read_as_diffusers_reads_them(tmp_path_factory):
    """`lora_unet_input_blocks_...`, as kohya's SDXL scripts write; diffusers' loader says what they mean."""
    base = load_model(str(save_model(tmp_path_factory.mktemp("xl") / "sdxl", "sdxl", 2048)), "cpu")
    tensors, g = {}, torch.Generator().manual_seed(0)
    shapes = {
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q": (16, 16),
        "input_blocks.2.0.in_layers.2": (16, 16, 3, 3),
        "input_blocks.3.0.op": (16, 16, 3, 3),
        "input_blocks.4.0.skip_connection": (32, 16, 1, 1),
        "input_blocks.4.1.proj_in": (32, 32, 1, 1),
        "input_blocks.5.1.transformer_blocks.1.attn2.to_k": (32, 2048),
        "middle_block.1.transformer_blocks.0.attn2.to_out.0": (32, 32),
        "middle_block.2.emb_layers.1": (32, 64),
        "output_blocks.0.0.out_layers.3": (32, 32, 3, 3),
        "output_blocks.4.1.transformer_blocks.1.ff.net.2": (32, 128),
        "output_blocks.5.2.conv": (32, 32, 3, 3),
        "output_blocks.8.1.proj_out": (16, 16, 1, 1),
    }
    for path, shape in shapes.items():
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(3, *shape[1:], generator=g)
        tensors[f"{name}.lora_up.weight"] = torch.randn(shape[0], 3, *(1 for _ in shape[2:]), generator=g)
        tensors[f"{name}.alpha"] = torch.tensor(6.0)
    ours = with_lora(base, parse_lora(tensors), "xl").denoiser.unet
    theirs = deepcopy(base.denoiser.unet)
    converted, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=theirs.config)
    theirs.load_lora_adapter(converted, network_alphas=alphas, prefix="unet")
    theirs.fuse_lora()
    theirs.unload_lora()
    changed = [
        name for name, w in base.denoiser.unet.state_dict().items() if not torch.equal(w, ours.state_dict()[name])
    ]
    assert len(changed) == len(shapes)
    same_weights(ours, theirs.state_dict())


def test_comfyuis_files_with_differences_of_norms_and_biases(base):
    """Keys as its trainer writes them; that its own loader means the same is a test of the real host."""
    unet = base.denoiser.unet
    g = torch.Generator().manual_seed(0)
    up, down, diff, bias = (torch.randn(s, generator=g) for s in ((32, 2), (2, 32), (32,), (32,)))
    start = "diffusion_model.middle_block.1.transformer_blocks.0"
    tensors = {f"{start}.attn2.to_q.lora_up.weight": up, f"{start}.attn2.to_q.lora_down.weight": down,
               f"{start}.attn2.to_q.alpha": torch.tensor(1.0), f"{start}.norm2.diff": diff,
               "diffusion_model.output_blocks.5.1.transformer_blocks.0.attn1.to_out.0.diff_b": bias}  # fmt: skip
    changed = with_lora(base, parse_lora(tensors), "comfyui").denoiser.unet
    added = {
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight": up @ down / 2,
        "mid_block.attentions.0.transformer_blocks.0.norm2.weight": diff,
        "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0.bias": bias,
    }
    own = unet.state_dict()
    same_weights(changed, {name: weight + added.get(name, 0) for name, weight in own.items()})


def test_a_convolution_between_two_pointwise_ones():
    g = torch.Generator().manual_seed(0)
    up, mid, down = (torch.randn(s, generator=g) for s in ((5, 2, 1, 1), (2, 2, 3, 3), (2, 4, 1, 1)))
    tensors = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    lora = parse_lora({f"lora_unet_conv_in.{name}": tensor for name, tensor in tensors.items()})
    (change,) = lora.changes.values()
    x = torch.randn(1, 4, 6, 6, generator=g)
    chain = torch.nn.functional.conv2d(x, down)
    chain = torch.nn.functional.conv2d(torch.nn.functional.conv2d(chain, mid), up)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, change.of_weight(torch.Size((5, 4, 3, 3)))), chain / 2)


def test_files_of_another_model_are_refused_by_name(tinyworld, sd1, tmp_path):
    tensors = kohya(pairs(adapted(sd1.denoiser.unet, ["to_q", "to_k"])), "lora_unet_", 5)
    with pytest.raises(
        InfusionError, match=r"^mine changes \d+ modules that the model tinyworld does not have, such as "
    ):
        with_lora(tinyworld, parse_lora(tensors), "mine")
    narrow = {key: tensor for key, tensor in tensors.items() if "down_blocks_0_attentions_0" in key and "attn2" in key}
    with pytest.raises(
        InfusionError, match=r"^mine \(down_blocks_0\w+\) does not fit this model .*another kind, or is d"
    ):
        with_lora(tinyworld, parse_lora(narrow), "mine")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ([], "no LoRA weights in it; give a LoRA file, or a full model as a folder"),
        (
            ["model.diffusion_model.out.2.weight"],
            "'model.diffusion_model.out.2.weight' is none of a LoRA file for Stable",
        ),
        (["lora_unet_conv_in.hada_w1_a"], r"a LoHa file \(lora_unet_conv_in.hada_w1_a\); plain LoRA and LoCon files"),
        (["lora_unet_conv_in.dora_scale"], "a DoRA file"),
    ],
)
def test_other_files_are_refused(keys, told, tmp_path):
    safetensors.torch.save_file({key: torch.zeros(2, 2) for key in keys}, tmp_path / "other.safetensors")
    with pytest.raises(InfusionError, match=rf"other\.safetensors: .*{told}"):
        read_lora(tmp_path / "other.safetensors")


def test_half_a_pair_is_refused(sd1):
    with pytest.raises(InfusionError, match="one of its two matrices is missing"):
        with_lora(sd1, parse_lora({"lora_unet_conv_in.lora_up.weight": torch.zeros(2, 2)}), "mine")


def test_metadata_that_are_no_json_are_left_alone(sd1, tmp_path):
    for told in ("{", "[]", json.dumps({"unet.lora_alpha": "much"})):
        tensors = kohya(pairs(adapted(sd1.denoiser.unet, ["to_q"])), "lora_unet_", 5)
        safetensors.torch.save_file(tensors, tmp_path / "odd.safetensors", {"lora_adapter_metadata": told})
        assert read_lora(tmp_path / "odd.safetensors").parts == {"unet"}


def test_a_variant_is_the_base_a_lora_at_a_strength_or_a_full_model(sd1, sd1_folder, tmp_path):
    unet = adapted(sd1.denoiser.unet, ["to_q"])
    safetensors.torch.save_file(kohya(pairs(unet), "lora_unet_", 5), tmp_path / "epoch.safetensors")
    own, whole = sd1.denoiser.unet.state_dict(), merged(unet)
    assert load_variant("base", sd1) is sd1
    same_weights(load_variant(str(tmp_path / "epoch.safetensors"), sd1).denoiser.unet, whole)
    half = load_variant(f"{tmp_path / 'epoch.safetensors'}:0.5", sd1).denoiser.unet
    same_weights(half, {name: (own[name] + whole[name]) / 2 for name in own})
    full = load_variant(str(sd1_folder), sd1)
    assert full is not sd1
    same_weights(full.denoiser.unet, own)
    checkpoint = save_single_file(sd1_folder, "sd1", tmp_path / "one.safetensors")
    same_weights(load_variant(str(checkpoint), sd1, sd1_folder).denoiser.unet, own)


def test_variants_that_are_none_are_refused(sd1, sd1_folder, tmp_path):
    other = save_model(tmp_path / "other", "sd2", 1024)
    for asked, told in (
        (str(other), "is another kind of model than .*; give one trained from the same base"),
        (f"{sd1_folder}:0.5", "is a full model and has no strength; leave 0.5 out"),
        (str(tmp_path / "gone.safetensors"), "gone.safetensors is missing"),
    ):
        with pytest.raises(InfusionError, match=told):
            load_variant(asked, sd1)

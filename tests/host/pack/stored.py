"""TinyWorld stored in fewer bits, or partly off its device, and the gradients that training gets through it."""

import json
import sys
import weakref
from contextlib import nullcontext

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch

import nodes

from .others import TEXT, node, pack_name
from .tinyworld import UNET, WEIGHTS, TinyWorld, load_clip, load_file

STORED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}


def unet(stored, upcast=False):
    """TinyWorld's UNet with its weights in a precision, or the numbers that they have there in full precision."""
    weights = load_file(WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors")
    names = comfy.utils.unet_to_diffusers(UNET)
    state = {names[k]: v.float().to(stored) for k, v in weights.items()}
    dtype = torch.float32 if upcast else stored
    config = TinyWorld(UNET)
    config.set_inference_dtype(dtype, torch.float32 if dtype != torch.float32 else None)
    model = config.get_model({k: v.to(dtype) for k, v in state.items()}, "")
    model.load_model_weights({k: v.to(dtype) for k, v in state.items()}, "")
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def with_lora(model, clip, name):
    if not name:
        return model
    file = comfy.utils.load_torch_file(folder_paths.get_full_path("loras", name), safe_load=True)
    return comfy.sd.load_lora_for_models(model, clip, file, 1.0, 0.0)[0]


def gradients(model, clip, what, checkpointing, offloaded=0.0):
    """Gradients of one batch by name, bytes kept for the way back beside the weights, and layers that were cast."""
    pack = sys.modules
    core = f"{pack_name()}.infusion_core"
    host = pack[f"{pack_name()}.nodes.host.denoiser"]
    residual, apt = pack[f"{core}.training.residual"], pack[f"{core}.training.apt"]
    latents = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    with host.training(model, checkpointing) as denoiser:
        around = nullcontext()
        if what == "residual":
            prompts = host.encode_captions(model, clip, ["a circle"], "circle", latents[:, 0])
            settings = residual.ResidualSettings(batch_size=2)
            objective = residual.residual_trainer(denoiser, latents, prompts, "circle", settings).objective
        else:
            lora = pack[f"{pack_name()}.nodes.host.lora"]
            settings = apt.AptSettings(batch_size=2, rank=2)
            read = lora.captions_for(denoiser.model, clip, ["a circle"], latents[:, 0], False)
            layers = lora.layers_of(denoiser.model, clip, "transformer", False)
            learned = pack[f"{core}.lora"].LoraSet(layers, 2)
            objective = apt.AptObjective(
                denoiser, learned, pack[f"{core}.training.shown"].Shown(latents, read), settings.unrestrained
            )
            around = learned.installed()
        tensors = {name: t for group in objective.groups() for name, t in group.tensors.items()}
        with torch.no_grad():
            for name in sorted(tensors):
                tensors[name].normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        if offloaded:
            denoiser.model.partially_unload(torch.device("cpu"), offloaded * denoiser.weights)
        layers = pack[f"{pack_name()}.nodes.host.casting"].layers_in(denoiser.model.model.diffusion_model)
        cast = sum(bool(layer.comfy_cast_weights) for layer in layers)
        own = {p.untyped_storage().data_ptr() for p in denoiser.model.model.parameters()}
        kept = {}

        def pack_tensor(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with around:
            with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
                losses = objective.losses(torch.Generator().manual_seed(5))
            loss = sum(part.mean() for part in losses.values())
            found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return (
        {name: g for name, g in zip(tensors, found, strict=True) if g is not None},
        sum(size for place, size in kept.items() if place not in own),
        cast,
    )


def apart(one, other):
    """The largest difference of two sets of gradients, in units of the second's norm."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in one if other[name].norm() > 0)


@node(("STRING",), stored=(list(STORED),), what=TEXT, checkpointing=("BOOLEAN", {"default": False}))
def stored_gradients(stored, what, checkpointing):
    """Through weights that are stored in a precision, against the same numbers in full precision."""
    clip = load_clip()
    ours, kept, cast = gradients(unet(STORED[stored]), clip, what, checkpointing)
    theirs, plain, _ = gradients(unet(STORED[stored], upcast=True), clip, what, checkpointing)
    return json.dumps({"apart": apart(ours, theirs), "kept": kept / plain, "cast": cast, "count": len(ours)})


@node(("STRING",), what=TEXT, lora=TEXT, checkpointing=("BOOLEAN", {"default": False}))
def offloaded_gradients(what, lora, checkpointing):
    """Through a network of which half was unloaded, against the whole one."""
    clip = load_clip()
    half = gradients(with_lora(unet(torch.float32), clip, lora), clip, what, checkpointing, 0.5)
    whole = gradients(with_lora(unet(torch.float32), clip, lora), clip, what, checkpointing)
    bare = gradients(unet(torch.float32), clip, what, checkpointing)
    told = {"apart": apart(half[0], whole[0]), "kept": half[1] / whole[1], "cast": half[2], "whole": whole[2]}
    return json.dumps({**told, "lora": apart(whole[0], bare[0])})


@node(("STRING",), text=("BOOLEAN", {"default": False}))
def loaded_while_training(text):
    """Which of a UNet, a CLIP and another model the host holds once training has begun."""
    host = sys.modules[f"{pack_name()}.nodes.host.denoiser"]
    model, clip, other = unet(torch.float32), load_clip(), unet(torch.float32)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model, clip.patcher, other])
    names = {id(model): "model", id(clip.patcher): "clip", id(other): "other"}

    def held():
        loaded = comfy.model_management.current_loaded_models
        return sorted(names[id(one.model)] for one in loaded if id(one.model) in names)

    before = held()
    with host.training(model) as denoiser:
        denoiser.begin(10**6, [clip.patcher] if text else [])
        during = held()
        ordinary = not any(p.is_inference() for p in model.model.diffusion_model.parameters())
    return json.dumps({"before": before, "during": during, "ordinary": ordinary})


@node(("STRING",), model="MODEL", clip="CLIP", vae="VAE", folder=TEXT)
def short_of_memory(model, clip, vae, folder):
    """Train Many where the memory is too small for two concepts; of the run that failed, what is there in later steps.

    Beside that of its trainer and of a loss that it was computing, it says what the node told.
    """
    kind, failed, there = sys.modules[f"{pack_name()}.infusion_core.training.engine"].Trainer, [], []
    original = kind._gradients

    def gradients(trainer, generator):
        if len(trainer.objective.members) > 1:
            loss = sum(trainer.objective.losses(generator).values())
            failed.extend(map(weakref.ref, (trainer, loss)))
            raise torch.cuda.OutOfMemoryError("2 GiB")
        there.append([held() is not None for held in failed])
        return original(trainer, generator)

    kind._gradients = gradients
    try:
        asked = {"word": "", "steps": 2, "together": 2, "batch_size": 1, "accumulation": 1, "learning_rate": 0.1}
        more = {"layout": "block", "bins": 1, "resolution": 128, "seed": 0, "save_in": "short"}
        many = nodes.NODE_CLASS_MAPPINGS["InfusionTrainMany"]
        _, told = many.execute(model=model, clip=clip, vae=vae, folder=folder, **asked, **more).args
    finally:
        kind._gradients = original
    return json.dumps({"told": told, "there": there})


class Dynamic(comfy.model_patcher.ModelPatcher):
    """A MODEL as a host has that loads dynamically: what is trained on is not it but its delegate."""

    def is_dynamic(self):
        return True

    def set_in_use_by_current_prompt(self, _):
        """What such a host calls on the outputs of nodes."""

    def get_non_dynamic_delegate(self):
        return comfy.model_patcher.ModelPatcher(self.model, self.load_device, self.offload_device)

    def clone(self, *args, **kwargs):
        raise RuntimeError("a second copy of the network would be loaded")


@node(("MODEL",))
def dynamic():
    """A MODEL that must not be drawn with while its delegate is trained on."""
    delegate = unet(torch.float32)
    return Dynamic(delegate.model, delegate.load_device, delegate.offload_device)


@node(("IMAGE", "MASK"), images="IMAGE", mask="MASK")
def in_half(images, mask):
    """Pictures and masks as ComfyUI hands them on with --fp16-intermediates."""
    return images.half(), mask.half()


NODES = {
    "TestDynamic": dynamic,
    "TestInHalf": in_half,
    "TestShortOfMemory": short_of_memory,
    "TestStoredGradients": stored_gradients,
    "TestOffloadedGradients": offloaded_gradients,
    "TestLoadedWhileTraining": loaded_while_training,
}

"""What the example workflows expect on a user's disk, as stand-ins for TinyWorld."""

from __future__ import annotations

import torch
from PIL import Image
from safetensors.torch import save_file

from comfyui_process.server import Server
from infusion_core.embedded.tinyworld import CONCEPTS, training_images

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
CONTROLNET = "control_v11p_sd15_canny_fp16.safetensors"
LORA = "your-style.safetensors"
EARLY_LORA, LATE_LORA = "your-cat-epoch-02.safetensors", "your-cat-epoch-10.safetensors"
PHOTOS = ("cat-1.jpg", "cat-2.jpg", "cat-3.jpg")
OTHER_PHOTOS = ("dog-1.jpg", "dog-2.jpg", "dog-3.jpg")  # of who is not the cat


def prepare(server: Server) -> None:
    """Put photos, an empty checkpoint and ControlNet (they load as TinyWorld) and LoRAs where the host looks."""
    models = server.base / "models"
    for folder, name in (("checkpoints", CHECKPOINT), ("controlnet", CONTROLNET)):
        (models / folder).mkdir(parents=True, exist_ok=True)
        (models / folder / name).touch()
    for names, concept in ((PHOTOS, "ember"), (OTHER_PHOTOS, "harlequin")):
        for name, picture in zip(names, training_images(CONCEPTS[concept]), strict=False):
            picture.save(server.base / "input" / name, quality=95)
    Image.new("RGB", (128, 128), "gray").save(server.base / "input" / "example.png")
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
    for seed, name in enumerate((LORA, EARLY_LORA, LATE_LORA), start=1):
        generator = torch.Generator().manual_seed(seed)
        state = {f"{key}.{part}.weight": torch.randn(*shape, generator=generator)
                 for part, shape in (("lora_up", (128, 4)), ("lora_down", (4, 128)))}  # fmt: skip
        save_file(state, models / "loras" / name)

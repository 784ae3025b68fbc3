"""What every example workflow has: a checkpoint, photos, prompts, a sampler, a picture."""

from __future__ import annotations

from collections.abc import Sequence

from comfyui_process.graph import Output
from infusion_core.captions import OTHER_PROMPTS
from tests.host.examples import CHECKPOINT, CONTROLNET

from .sheet import ABOUT, MODEL, PICTURE, Download, Part, Sheet

NEGATIVE = "blurry, low quality"
READING = "a photo of a cat reading a book in a library"
BEACH = "a photo of a cat and a dog beside a backpack on a beach"
SUBJECT = "a photo of sks cat reading a book in a library"  # as diffusers' scripts name a subject
BOTH = "a photo of sks dog beside a cat on a beach"
ROOF = "a photo of a cat on a snowy roof"
HOUSE = OTHER_PROMPTS[1]
OTHERS = "\n".join(OTHER_PROMPTS)
HUB = "https://huggingface.co"
SD15 = Download(CHECKPOINT, f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}", "checkpoints")
CANNY = Download(
    CONTROLNET, f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/{CONTROLNET}", "controlnet"
)
Triple = tuple[Output, Output, Output]


def link(download: Download) -> str:
    """Where to get a model and where to put it, in markdown."""
    return f"[{download.name}]({download.url}) goes into `models/{download.directory}`."


def checkpoint(sheet: Sheet, about: str) -> Triple:
    """The first column: what the workflow does, and the checkpoint."""
    loaded = sheet.graph.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    sheet.downloads[loaded.node] = SD15
    note = f"Any Stable Diffusion 1.x, 2.x or XL checkpoint. This one: {link(SD15)}"
    sheet.columns.append([Part("About", ABOUT, about), Part("Model", MODEL, note, ((loaded,),))])
    return loaded[0], loaded[1], loaded[2]


def photos(sheet: Sheet) -> Output:
    """The node for the user's photos; empty, so that theirs are the only ones."""
    return sheet.graph.add("InfusionLoadPhotos", folder="", photos="", resolution=512, crop="center")


def patch(sheet: Sheet, model: Output, clip: Output, concept: Output) -> Output:
    """The patch node with its defaults."""
    return sheet.graph.add(
        "InfusionAttentionPatch", model=model, clip=clip, concept=concept, base_latent="shared", start=0.0, end=1.0,
        maps_start=0.0, maps_end=1.0, block_strengths="", map_replacement="as trained",
    )  # fmt: skip


def prompts(sheet: Sheet, clip: Output, text: str) -> tuple[Output, Output]:
    """A prompt and a negative one."""
    positive = sheet.titled(sheet.graph.add("CLIPTextEncode", clip=clip, text=text), "Prompt")
    return positive, sheet.titled(sheet.graph.add("CLIPTextEncode", clip=clip, text=NEGATIVE), "Negative prompt")


def size(sheet: Sheet) -> Output:
    """The empty latent of SD1.5's size."""
    return sheet.graph.add("EmptyLatentImage", width=512, height=512, batch_size=1)


def sample(
    sheet: Sheet, model: Output, positive: Output, negative: Output, vae: Output, latent: Output
) -> tuple[Output, Output]:
    """A sampler and what it has drawn, decoded."""
    samples = sheet.graph.add(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=7, steps=25, cfg=7.0,
        sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0,
    )  # fmt: skip
    return samples, sheet.graph.add("VAEDecode", samples=samples, vae=vae)


def picture(
    sheet: Sheet, model: Output, texts: tuple[Output, Output], vae: Output, latent: Output, name: str, note: str
) -> None:
    """The last column: draw and save."""
    samples, decoded = sample(sheet, model, *texts, vae, latent)
    saved = sheet.graph.add("SaveImage", images=decoded, filename_prefix=name)
    sheet.columns.append([Part("Picture", PICTURE, note, ((samples,), (decoded,), (saved,)))])


def side_by_side(sheet: Sheet, pictures: Sequence[Output], spacing: int = 8) -> list[Output]:
    """Pictures from left to right; the nodes that join them, the last of which has them all."""
    row, joined = pictures[0], []
    for one in pictures[1:]:
        row = sheet.graph.add("ImageStitch", image1=row, image2=one, direction="right", match_image_size=True,
                              spacing_width=spacing, spacing_color="white")  # fmt: skip
        joined.append(row)
    return joined

"""The example workflows about LoRAs, written for a stock SD1.5 checkpoint."""

from __future__ import annotations

from comfyui_process.graph import Output
from infusion_core.dreamblend import BlendSettings
from infusion_core.training.apt import AptSettings
from infusion_core.training.overfitting import TEMPERATURE
from tests.host.examples import EARLY_LORA, LATE_LORA

from .pieces import BOTH, SUBJECT, checkpoint, patch, photos, prompts, sample, side_by_side, size
from .sheet import CONCEPT, MODEL, PHOTOS, PICTURE, PROMPT, Part, Sheet


def guide_a_lora() -> Sheet:
    """A late epoch alone and guided by an early one at two alphas, side by side."""
    sheet = Sheet()
    model, clip, vae = checkpoint(
        sheet,
        "# An early epoch guides a late one\n"
        "The late epoch of a LoRA has your cat and forgets the prompt; the early one is the other way round. "
        "DreamBlend draws with the late one and keeps it to the prompt. Nothing is trained.",
    )
    late, early = (
        sheet.titled(
            sheet.graph.add(
                "LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0
            ),
            title,
        )
        for name, title in ((LATE_LORA, "Late epoch"), (EARLY_LORA, "Early epoch"))
    )
    texts, early_texts = (prompts(sheet, own, SUBJECT) for own in (late[1], early[1]))
    latent, default = size(sheet), BlendSettings()
    told = {"early_positive": early_texts[0], "early_negative": early_texts[1]}
    guided = [
        sheet.titled(guide(sheet, late[0], early[0], alpha, **told), f"Alpha {alpha:g}")
        for alpha in (default.alpha / 2, default.alpha)
    ]
    drawn = [sample(sheet, one, *texts, vae, latent) for one in (late[0], *guided)]
    samples, pictures = zip(*drawn, strict=True)
    stitches = side_by_side(sheet, pictures)
    saved = sheet.graph.add("SaveImage", images=stitches[-1], filename_prefix="dreamblend")
    sheet.columns += [
        [Part("Two epochs of one LoRA", MODEL, "Files that your trainer saved on the way. To be guided by the "
              "checkpoint itself, connect its MODEL to `early_model` and leave the early prompts out.",
              ((late, early),))],
        [Part("Prompts and size", PROMPT, "Write what the LoRA was trained with, here `sks cat`. The early prompts "
              "are the same text by the early CLIP; they are needed only if the LoRA changes the text encoder.",
              ((*texts, latent), early_texts))],
        [Part("Guidance", CONCEPT, "More alpha: more of the prompt, less of the cat.", (tuple(guided),))],
        [Part("Picture", PICTURE, "Left the late epoch alone, then with both alphas. Each guided picture takes about "
              "three times as long: the early epoch draws first.", (samples, pictures, (*stitches, saved)))],
    ]  # fmt: skip
    return sheet


def guide(sheet: Sheet, late: Output, early: Output, alpha: float, **prompts_of_early: Output) -> Output:
    """The guidance node with its defaults."""
    default = BlendSettings()
    return sheet.graph.add(
        "DreamBlendGuidance", model=late, early_model=early, mode=default.mode, alpha=alpha, start=0.0, end=1.0,
        every=1, gradient_steps=1, distance=default.distance, normalise=default.normalise, layers="",
        **prompts_of_early,
    )  # fmt: skip


def train_a_lora() -> Sheet:
    """A restrained LoRA, the same with a concept beside it, and both under guidance, side by side."""
    sheet = Sheet()
    model, clip, vae = checkpoint(
        sheet,
        "# Train a LoRA that does not overfit, and use everything at once\n"
        "Photos of your dog become a LoRA that any loader reads. Beside it your cat comes from a concept file, and "
        "DreamBlend keeps both to the prompt.",
    )
    taken, default = photos(sheet), AptSettings()
    trained = sheet.graph.add(
        "APTTrain", model=model, clip=clip, vae=vae, images=taken[0], identifier="sks", word="dog",
        steps=default.steps, batch_size=default.batch_size, accumulation=default.accumulation,
        learning_rate=default.learning_rate, rank=default.rank, alpha=0.0, targets=default.targets,
        text_rate=default.text_rate, resolution=512, seed=0, preview_every=default.snapshot_every, restrain=True,
        augment=default.restraint.augment, reweight=default.restraint.reweight, stabilisation=default.stabilisation,
        alignment=default.alignment, temperature=TEMPERATURE, captions="",
    )  # fmt: skip
    saved = sheet.graph.add("SaveLoRA", lora=trained[2], prefix="loras/my-dog")
    curve = sheet.titled(sheet.graph.add("PreviewImage", images=trained[3]), "Known by heart")
    concept = sheet.graph.add("InfusionLoadConcept", concept_name="my-cat.safetensors", strength=1.0)
    patched = patch(sheet, trained[0], trained[1], concept)
    guided = guide(sheet, patched[0], model, BlendSettings().alpha)
    texts, latent = prompts(sheet, patched[1], BOTH), size(sheet)
    drawn = [sample(sheet, one, *texts, vae, latent) for one in (trained[0], patched[0], guided)]
    samples, pictures = zip(*drawn, strict=True)
    stitches = side_by_side(sheet, pictures)
    kept = sheet.graph.add("SaveImage", images=stitches[-1], filename_prefix="apt")
    sheet.columns += [
        [Part("Photos", PHOTOS, "Press **upload photos** and choose 3-6 photos of one dog.", ((taken,),))],
        [Part("Train the LoRA", MODEL, "The bars show how well the photos are known by heart, from the least noise to "
              "the most. Snapshots lie in `output/loras/apt`.", ((trained,), (saved, curve)))],
        [Part("A concept beside it", CONCEPT, "Your cat, trained with *Infusion Train*. It takes the LoRA's MODEL and "
              "CLIP.", ((concept, patched),)),
         Part("Guidance", CONCEPT, "The checkpoint itself is the guide.", ((guided,),))],
        [Part("Prompts and size", PROMPT, "`sks dog` is the LoRA's, `cat` the concept's.", ((*texts, latent),))],
        [Part("Picture", PICTURE, "Left the LoRA alone, with any cat; then with yours; then guided by the checkpoint, "
              "which takes about three times as long.", (samples, pictures, (*stitches, kept)))],
    ]  # fmt: skip
    return sheet

"""The example workflows about concepts, written for a stock SD1.5 checkpoint."""

from __future__ import annotations

from comfyui_process.graph import Output
from infusion_core.training.residual import ResidualSettings
from tests.host.examples import CONTROLNET, LORA

from .pieces import (
    BEACH,
    CANNY,
    HOUSE,
    OTHERS,
    READING,
    ROOF,
    Triple,
    checkpoint,
    link,
    patch,
    photos,
    picture,
    prompts,
    sample,
    side_by_side,
    size,
)
from .sheet import CONCEPT, MODEL, NUMBER, PHOTOS, PICTURE, PROMPT, Part, Sheet


def train_and_draw() -> Sheet:
    sheet = Sheet()
    model, clip, vae = checkpoint(
        sheet,
        "# Train a concept and draw it\n"
        "Photos of a cat become a concept file of 49 KB, and the same graph draws that cat in a new place.\n"
        "Read from left to right, add your photos, and press Run.",
    )
    taken = photos(sheet)
    default = ResidualSettings()
    trained = sheet.graph.add(
        "InfusionTrain", model=model, clip=clip, vae=vae, images=taken[0], word="cat", steps=default.steps,
        batch_size=default.batch_size, learning_rate=default.learning_rate, layout=default.layout, bins=default.bins,
        resolution=512, seed=0, preview_every=default.snapshot_every, captions="",
        replace_maps=default.replace_maps, maps_end=default.replacement_end,
    )  # fmt: skip
    saved = sheet.graph.add("InfusionSaveConcept", concept=trained[0], filename="my-cat", storage="fp16")
    loss = sheet.titled(sheet.graph.add("PreviewImage", images=trained[1]), "Loss")
    patched = patch(sheet, model, clip, saved)
    texts, latent = prompts(sheet, patched[1], READING), size(sheet)
    sheet.columns += [
        [Part("Photos", PHOTOS, "Press **upload photos** and choose 3-6 photos of one cat, or name a folder. Different "
              "places and poses are best.", ((taken,),))],
        [Part("Train", CONCEPT, "Write the class word that prompts will say, here `cat`. The file goes to "
              "`output/infusion`. The orange line of the loss is the one to read: when it no longer falls, more steps "
              "do not help.", ((trained,), (saved, loss)))],
        [Part("Put the concept on the model", CONCEPT, "It works like a LoRA loader: MODEL goes to the sampler, CLIP "
              "to the prompts.", ((patched,),))],
        [Part("Prompts and size", PROMPT, "Say `cat` and it is yours. A prompt without the word draws what the base "
              "model draws.", ((*texts, latent),))],
    ]  # fmt: skip
    picture(sheet, patched[0], texts, vae, latent, "infusion-first", "Your cat, in a place that is in none of the "
            "photos. A second run does not train again: nothing before the changed node runs anew.")  # fmt: skip
    return sheet


def one_concept() -> Sheet:
    sheet = Sheet()
    model, clip, vae = checkpoint(
        sheet,
        "# Use a concept\n"
        "Load a concept file and write an ordinary prompt. The cat is yours; all else is the base model's.",
    )
    concept = sheet.graph.add("InfusionLoadConcept", concept_name="my-cat.safetensors", strength=1.0)
    patched = patch(sheet, model, clip, concept)
    texts, latent = prompts(sheet, patched[1], READING), size(sheet)
    sheet.columns += [
        [Part("Concept", CONCEPT, "Choose a file that you have trained (`output/infusion`) or were given "
              "(`models/infusion`). The panel says which word it is for.", ((concept,),))],
        [Part("Put the concept on the model", CONCEPT, "MODEL goes to the sampler, CLIP to every prompt.",
              ((patched,),))],
        [Part("Prompts and size", PROMPT, "Write the word, `cat`. Where it stands there twice, write `<my-cat>` for "
              "the one that is meant.", ((*texts, latent),))],
    ]  # fmt: skip
    picture(
        sheet,
        patched[0],
        texts,
        vae,
        latent,
        "infusion-one",
        "Set the concept's strength to 0 to see what the base model draws from the same seed.",
    )
    return sheet


def three_concepts() -> Sheet:
    sheet = Sheet()
    model, clip, vae = checkpoint(
        sheet,
        "# Three concepts in one prompt\n"
        "Your cat, your dog and your backpack in one picture, without masks: each concept acts on its own word.",
    )
    rows = {f"concepts.concept_{i}": f"my-{word}.safetensors" for i, word in enumerate(("cat", "dog", "backpack"), 1)}
    strengths = {f"concepts.strength_{i}": 1.0 for i in (1, 2, 3)}
    concept = sheet.graph.add("InfusionLoadConcepts", concepts="3", **rows, **strengths)
    patched = patch(sheet, model, clip, concept)
    texts, latent = prompts(sheet, patched[1], BEACH), size(sheet)
    sheet.columns += [
        [Part("Concepts", CONCEPT, "Choose how many, then the files and how strongly each shows.", ((concept,),))],
        [Part("Put the concepts on the model", CONCEPT, "One patch for all. Three take little longer than one.",
              ((patched,),))],
        [Part("Prompts and size", PROMPT, "Name each by its word. Two concepts of one word are told apart by file "
              "name: `<my-cat>` and `<other-cat>`.", ((*texts, latent),))],
    ]  # fmt: skip
    picture(sheet, patched[0], texts, vae, latent, "infusion-three",
            "If a thing is missing, see whether the base model draws it: a concept changes how a thing looks, not "
            "whether it is there.")  # fmt: skip
    return sheet


def concept_lora_controlnet() -> Sheet:
    sheet = Sheet()
    model, clip, vae = checkpoint(
        sheet,
        "# A concept with a LoRA and a ControlNet\n"
        "The LoRA brings the style, the ControlNet the outlines, the concept your cat.",
    )
    styled = sheet.graph.add("LoraLoader", model=model, clip=clip, lora_name=LORA, strength_model=0.6,
                             strength_clip=0.6)  # fmt: skip
    concept = sheet.graph.add("InfusionLoadConcept", concept_name="my-cat.safetensors", strength=1.0)
    patched = patch(sheet, styled[0], styled[1], concept)
    texts, latent = prompts(sheet, patched[1], ROOF), size(sheet)
    image = sheet.graph.add("LoadImage", image="example.png")
    edges = sheet.graph.add("Canny", image=image, low_threshold=0.3, high_threshold=0.7)
    net = sheet.graph.add("ControlNetLoader", control_net_name=CONTROLNET)
    sheet.downloads[net.node] = CANNY
    controlled = sheet.graph.add(
        "ControlNetApplyAdvanced", positive=texts[0], negative=texts[1], image=edges, strength=0.6, start_percent=0.0,
        end_percent=0.8, control_net=net,
    )  # fmt: skip
    sheet.columns[0].append(Part("LoRA", MODEL, "Any LoRA for the same checkpoint, in front of the patch.",
                                 ((styled,),)))  # fmt: skip
    sheet.columns += [
        [Part("Concept", CONCEPT, "The file of your cat.", ((concept,),))],
        [Part("Put the concept on the model", CONCEPT, "It takes the LoRA's MODEL and CLIP.", ((patched,),))],
        [Part("Prompts and size", PROMPT, "Write the word, `cat`.", ((*texts, latent),))],
        [Part("ControlNet", PHOTOS, f"Outlines of a picture say where things are. {link(CANNY)}",
              ((image, edges), (net, controlled)))],
    ]  # fmt: skip
    picture(
        sheet,
        patched[0],
        (controlled[0], controlled[1]),
        vae,
        latent,
        "infusion-stack",
        "Lower the ControlNet's strength if the picture's outlines press the cat into another shape.",
    )
    return sheet


def what_else_changes() -> Sheet:
    """The same measurement of a LoRA and of a concept, both of a cat, on prompts that are not about cats."""
    sheet = Sheet()
    model, clip, vae = checkpoint(
        sheet,
        "# What else changes\n"
        "A LoRA and a concept, both of your cat: how much do they change prompts that are *not* about cats? The "
        "concept's number is 0.",
    )
    taken = photos(sheet)
    lora = sheet.graph.add("LoraLoader", model=model, clip=clip, lora_name=LORA, strength_model=1.0, strength_clip=1.0)
    concept = sheet.graph.add("InfusionLoadConcept", concept_name="my-cat.safetensors", strength=1.0)
    patched = patch(sheet, model, clip, concept)
    sheet.columns += [
        [Part("Pictures to measure on", PHOTOS, "A few pictures of anything. They are noised and shown to both models.",
              ((taken,),))],
        [Part("The concept", CONCEPT, "Only its word is touched.", ((concept, patched),)),
         Part("The LoRA", MODEL, "A LoRA of the same cat.", ((lora,),))],
    ]  # fmt: skip
    customs = {"concept": (patched[0], patched[1]), "LoRA": (lora[0], lora[1])}
    sheet.columns.append(
        [_measured(sheet, name, custom, (model, clip, vae), taken) for name, custom in customs.items()]
    )
    _drawn_twice(sheet, list(customs.values()), vae)
    return sheet


def _measured(sheet: Sheet, name: str, custom: tuple[Output, Output], base: Triple, taken: Output) -> Part:
    measured = sheet.graph.add(
        "InfusionOverfitMetrics", base_model=base[0], custom_model=custom[0], clip=base[1], custom_clip=custom[1],
        vae=base[2], images=taken[0], prompts=OTHERS, draws=64, resolution=512, seed=0,
    )  # fmt: skip
    number = sheet.titled(sheet.graph.add("PreviewAny", source=measured[2]), f"Divergence of the {name}")
    report = sheet.titled(sheet.graph.add("PreviewAny", source=measured[0]), "Report")
    note = f"How far the {name} moves prompts about other things. 0: not at all."
    return Part(f"Measure the {name}", NUMBER, note, ((measured,), (number, report)))


def _drawn_twice(sheet: Sheet, customs: list[tuple[Output, Output]], vae: Output) -> None:
    """The same prompt and seed with either model, side by side."""
    latent = size(sheet)
    texts = [prompts(sheet, clip, HOUSE) for _, clip in customs]
    drawn = [sample(sheet, model, *text, vae, latent) for (model, _), text in zip(customs, texts, strict=True)]
    samples, pictures = zip(*drawn, strict=True)
    (both,) = side_by_side(sheet, pictures, spacing=0)
    saved = sheet.graph.add("SaveImage", images=both, filename_prefix="infusion-else")
    sheet.columns += [
        [Part("Prompts and size", PROMPT, "A prompt without the word, for either CLIP.",
              ((*texts[0], *texts[1], latent),))],
        [Part("Picture", PICTURE, "The same prompt and seed. Left with the concept: what the base model draws, bit for "
              "bit. Right with the LoRA.", (samples, pictures, (both, saved)))],
    ]  # fmt: skip

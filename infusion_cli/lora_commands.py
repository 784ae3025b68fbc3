"""Options of the commands about LoRA files: training one, and guiding a late one by an early one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.dreamblend import BlendSettings, Distance, Mode
from infusion_core.lora_layers import Targets
from infusion_core.lora_output import LoraStorage
from infusion_core.photos import MOST_FILES
from infusion_core.schedule import RateSchedule, Window
from infusion_core.training.apt import AptSettings
from infusion_core.training.objective import Weighting
from infusion_core.training.overfitting import Restraint
from infusion_core.training.stopping import Finish

from .options import (
    Aspect,
    Checkpointing,
    Config,
    Flip,
    Guidance,
    Masks,
    Model,
    PreviewEvery,
    PreviewPrompt,
    Resume,
    Seed,
    Steps,
    StopAt,
    StopOption,
    TakeOption,
    Transparency,
    place,
    place_argument,
)

_BLEND, _APT = BlendSettings(), AptSettings()


def apt(
    images: Annotated[Path, place(help="Folder with 3-6 photos of the subject (JPEG, PNG, WebP).")],
    word: Annotated[str, typer.Option(help="The class word, e.g. 'cat'.")],
    out: Annotated[Path, place(help="The LoRA file to write, NAME.safetensors.")],
    identifier: Annotated[
        str, typer.Option(help="Rare word in front of it, so that prompts say e.g. 'sks cat'; none by default.")
    ] = "",
    model: Model = "tinyworld",
    config: Config = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = _APT.steps,
    batch_size: Annotated[int, typer.Option(help="Photos per pass.")] = _APT.batch_size,
    accumulation: Annotated[int, typer.Option(help="Passes per optimizer step.")] = _APT.accumulation,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = _APT.learning_rate,
    schedule: Annotated[RateSchedule, typer.Option(help="Of the learning rate.")] = _APT.schedule,
    weighting: Annotated[Weighting, typer.Option(help="Of the loss.")] = _APT.weighting,
    rank: Annotated[int, typer.Option(help="Of the LoRA's matrices: the larger, the more it can hold.")] = _APT.rank,
    alpha: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Size of the whole change; the rank by default."),
    ] = None,
    targets: Annotated[Targets, typer.Option(help="Layers of the UNet that are trained.")] = _APT.targets,
    text_rate: Annotated[
        float, typer.Option(help="Learning rate of the text encoders over the UNet's; 0 leaves them alone.")
    ] = _APT.text_rate,
    prior: Annotated[
        Optional[Path],  # noqa: UP045
        place(help="Folder with pictures of other members of the class, which are to stay as they are (DreamBooth)."),
    ] = None,
    prior_count: Annotated[
        int,
        typer.Option(min=0, max=MOST_FILES, help="Pictures that --prior should hold; the model draws missing ones."),
    ] = 0,
    prior_weight: Annotated[float, typer.Option(help="Of the loss on them.")] = _APT.prior_weight,
    restrain: Annotated[
        bool, typer.Option(help="Without: an ordinary LoRA; the next four are off, and overfitting is not measured.")
    ] = True,
    augment: Annotated[
        bool, typer.Option(help="Show photos smaller and turned, the more often the better they are known by heart.")
    ] = _APT.restraint.augment,
    reweight: Annotated[
        bool, typer.Option(help="Learn less where photos are known by heart.")
    ] = _APT.restraint.reweight,
    stabilisation: Annotated[
        float, typer.Option(help="How much self-attention's features are held to the base model's; 0 for not.")
    ] = _APT.stabilisation,
    alignment: Annotated[
        float, typer.Option(help="How much cross-attention's maps are held to the base model's; 0 for not.")
    ] = _APT.alignment,
    temperature: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="The larger, the sooner a smaller loss than the base model's counts as overfitting; by default 1000, "
            "as published for Stable Diffusion."
        ),
    ] = None,
    template: Annotated[
        Optional[list[str]], typer.Option(help="Caption with {} for the subject; repeat for several.")  # noqa: UP045
    ] = None,
    snapshot_every: Annotated[int, typer.Option(help="Steps between snapshots.")] = _APT.snapshot_every,
    masks: Masks = None,
    transparency: Transparency = True,
    aspect: Aspect = False,
    flip: Flip = False,
    stop_at: StopAt = 0.0,
    preview_prompt: PreviewPrompt = None,
    preview_every: PreviewEvery = None,
    stop: StopOption = "never",
    take: TakeOption = "last",
    checkpointing: Checkpointing = False,
    resume: Resume = False,
    storage: Annotated[LoraStorage, typer.Option(help="How to store the numbers.")] = "fp16",
    seed: Seed = _APT.seed,
) -> None:
    """Train a LoRA that measures its own overfitting and is restrained by it (APT); any LoRA loader reads the file.

    NAME.report.json and report.json say how it went, NAME.html shows it while it goes on, NAME.overfitting.png how
    overfitted it is step by step. Snapshots, pictures that --preview-prompt or --preview-every asks for, and the state
    that --resume goes on from, are in the folder NAME.snapshots: epochs for `blend` and `advise`.
    """
    from .apt import AptRequest, run_apt

    settings = AptSettings(
        steps=steps, batch_size=batch_size, accumulation=accumulation, learning_rate=learning_rate, schedule=schedule,
        weighting=weighting, rank=rank, alpha=alpha, targets=targets, text_rate=text_rate, prior_weight=prior_weight,
        restraint=Restraint(measure=True, augment=augment, reweight=reweight, temperature=temperature),
        stabilisation=stabilisation, alignment=alignment, snapshot_every=snapshot_every, seed=seed,
    )  # fmt: skip
    if not restrain:
        settings = settings.unrestrained
    templates = tuple(template or CAPTION_TEMPLATES)
    run_apt(
        AptRequest(
            model, images, word, identifier, out, settings, templates, prior, prior_count, resume, storage, config,
            stop_at, masks, checkpointing, flip, tuple(preview_prompt or ()), preview_every, transparency, aspect,
            Finish(stop, take),
        )
    )  # fmt: skip


def blend(
    early: Annotated[str, typer.Option(help="The early model, which guides: 'base', or as --late.")],
    late: Annotated[
        str, typer.Option(help="The late model, which draws: a LoRA file, or FILE:strength; or a full model.")
    ],
    prompt: Annotated[str, typer.Option(help="As the LoRA's training named the subject.")],
    out: Annotated[Path, place(help="Folder for the pictures, grid.png and report.json.")],
    model: Model = "tinyworld",
    config: Config = None,
    mode: Annotated[
        Mode,
        typer.Option(help="gradient: as published. replacement: faster, the late model with the early one's maps."),
    ] = _BLEND.mode,
    alpha: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(help="How strongly it guides, 0 not at all, in mode replacement at most 1; repeat for several."),
    ] = None,
    distance: Annotated[Distance, typer.Option(help="Of attention maps, in mode gradient.")] = _BLEND.distance,
    normalise: Annotated[
        bool, typer.Option(help="Scale the gradient, so that alpha means the same for every model.")
    ] = _BLEND.normalise,
    gradient_steps: Annotated[
        int, typer.Option(help="Steps down the gradient per denoising step.")
    ] = _BLEND.gradient_steps,
    every: Annotated[int, typer.Option(help="Guide at every so many steps.")] = _BLEND.every,
    start: Annotated[float, typer.Option(help="Share of the run where guidance begins.")] = _BLEND.window.start,
    end: Annotated[float, typer.Option(help="... and ends.")] = _BLEND.window.end,
    layers: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Blocks whose maps count, such as up or up.1; repeat for several. All by default."),
    ] = None,
    negative: Annotated[str, typer.Option(help="Negative prompt.")] = "",
    count: Annotated[int, typer.Option(help="Pictures of each alpha.")] = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
) -> None:
    """Draw with a late checkpoint or LoRA under the guidance of an early one (DreamBlend)."""
    from .blend import BlendRequest, run_blend

    settings = BlendSettings(
        mode=mode, distance=distance, normalise=normalise, gradient_steps=gradient_steps, every=every,
        window=Window(start, end), where=tuple(layers or ()),
    )  # fmt: skip
    alphas, sampling = tuple(alpha or (settings.alpha,)), {"steps": steps, "guidance": guidance}
    run_blend(BlendRequest(model, early, late, prompt, out, alphas, settings, count, seed, negative, config, sampling))


def grid(
    snapshots: Annotated[
        Path, place_argument(help="A training's --out or its folder NAME.snapshots; or any concept or LoRA file.")
    ],
    prompt: Annotated[list[str], typer.Option(help="Saying the subject as the training did; repeat for several.")],
    out: Annotated[Path, place(help="Folder for grid.png and report.json.")],
    strength: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(help="At which each snapshot is drawn; repeat for several, 1 by default."),
    ] = None,
    step: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Of the snapshots that are shown; repeat for several, all by default."),
    ] = None,
    model: Model = "tinyworld",
    config: Config = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
) -> None:
    """Draw snapshots of a training side by side: each at every strength, for every prompt, as one labelled picture."""
    from infusion_core.snapshot_grid import GridPlan

    from .grid import GridRequest, run_grid

    plan, sampling = GridPlan(tuple(strength or (1.0,)), tuple(prompt)), {"steps": steps, "guidance": guidance}
    run_grid(GridRequest(model, snapshots, plan, out, tuple(step or ()), seed, config, sampling))


def advise(
    epoch: Annotated[list[str], typer.Option(help="A LoRA file or full model; repeat, in the order of the training.")],
    subject: Annotated[str, typer.Option(help="What prompts say for it, as the training did, e.g. 'sks cat'.")],
    out: Annotated[Path, place(help="Folder for grid.png, curve.png and report.json.")],
    word: Annotated[str, typer.Option(help="The class word; the last word of --subject by default.")] = "",
    model: Model = "tinyworld",
    config: Config = None,
    images: Annotated[Optional[Path], place(help="Folder with photos of the subject.")] = None,  # noqa: UP045
    clip: Annotated[Optional[Path], place(help="Folder of CLIP ViT-B/32, to score prompts.")] = None,  # noqa: UP045
    dino: Annotated[Optional[Path], place(help="Folder of DINO ViT-S/16, to score likeness.")] = None,  # noqa: UP045
    prompt: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="With {} for the subject; repeat for several. Some everyday ones by default."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=64, help="Pictures of each prompt.")] = 2,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
) -> None:
    """Say which epochs of a training make the best pair for `blend`, from pictures of a few prompts.

    Every epoch draws the same prompts from the same seeds; then the best one is guided by the base model, and by the
    epoch that obeys best. Without --images, --clip and --dino only the collapse of attention is measured.
    """
    from .advise import AdviseRequest, run_advise
    from .judging import Judging

    named = word or subject.split()[-1] if subject.strip() else word
    judging = Judging(named, images, tuple(prompt or ()), clip, dino)
    sampling = {"steps": steps, "guidance": guidance}
    run_advise(AdviseRequest(model, tuple(epoch), subject, out, judging, count, seed, config, sampling))

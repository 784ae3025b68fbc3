"""The command ``infusion``: its options. What each command does is in the module of its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Optional

import typer
from typer.main import get_command

from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.errors import InfusionError
from infusion_core.residual_file import Storage
from infusion_core.residuals import Where
from infusion_core.schedule import RateSchedule, Window
from infusion_core.streams import BaseLatent
from infusion_core.training.objective import Weighting
from infusion_core.training.overfitting import OVERFITTING, Overfitting
from infusion_core.training.residual import ResidualSettings
from infusion_core.training.stopping import Finish

from .console import fail, show_anything
from .lora_commands import advise, apt, blend, grid
from .options import (
    Aspect,
    Checkpointing,
    Config,
    Flip,
    Guidance,
    LayoutOption,
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
    checked_path,
    place,
)

app = typer.Typer(
    name="infusion",
    help="Teach a diffusion model your subject from a few photos, in a file of 49 KB, and change nothing else.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_DEFAULT = ResidualSettings()


@app.command()
def train(
    images: Annotated[Path, place(help="Folder with 3-6 photos of the subject (JPEG, PNG, WebP).")],
    word: Annotated[str, typer.Option(help="The class word a prompt will say, e.g. 'cat'.")],
    out: Annotated[Path, place(help="The concept file to write, NAME.safetensors.")],
    model: Model = "tinyworld",
    config: Config = None,
    layout: LayoutOption = _DEFAULT.layout,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = _DEFAULT.steps,
    batch_size: Annotated[int, typer.Option(help="Samples per pass.")] = _DEFAULT.batch_size,
    accumulation: Annotated[int, typer.Option(help="Passes per optimizer step.")] = _DEFAULT.accumulation,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = _DEFAULT.learning_rate,
    schedule: Annotated[RateSchedule, typer.Option(help="Of the learning rate.")] = _DEFAULT.schedule,
    weighting: Annotated[Weighting, typer.Option(help="Of the loss.")] = _DEFAULT.weighting,
    bins: Annotated[int, typer.Option(help="Timestep bins, each with its own residual.")] = _DEFAULT.bins,
    parts: Annotated[int, typer.Option(help="Parts of the subject that --layout parts tells apart.")] = _DEFAULT.parts,
    where: Annotated[
        Where, typer.Option(help="Blocks of the UNet that have a residual: all, or the up half.")
    ] = _DEFAULT.where,
    replace_maps: Annotated[
        bool,
        typer.Option(
            help="Attend with the base model's maps. Without: faster. The file says which; drawing does the same."
        ),
    ] = _DEFAULT.replace_maps,
    replacement_end: Annotated[
        float,
        typer.Option(help="Share of a drawing run up to which it does so; from there on with the concept's own maps."),
    ] = _DEFAULT.replacement_end,
    overfitting: Annotated[
        Overfitting,
        typer.Option(
            help="measured: show how well the photos are known by heart. restrained: learn less where they are, and "
            "show them smaller and turned; it did not help where we measured it."
        ),
    ] = "ignored",
    template: Annotated[
        Optional[list[str]], typer.Option(help="Caption with {} for the word; repeat for several.")  # noqa: UP045
    ] = None,
    snapshot_every: Annotated[int, typer.Option(help="Steps between snapshots.")] = _DEFAULT.snapshot_every,
    validation_draws: Annotated[
        int, typer.Option(help="Fixed draws that the validation loss of a snapshot is the mean of.")
    ] = _DEFAULT.validation_draws,
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
    continue_from: Annotated[
        Optional[Path], place("--continue", help="A concept file to continue from.")  # noqa: UP045
    ] = None,
    resume: Resume = False,
    storage: Annotated[Storage, typer.Option(help="How to store the numbers.")] = "fp16",
    seed: Seed = _DEFAULT.seed,
) -> None:
    """Learn a concept from photos; write NAME.safetensors, and beside it NAME.report.json and report.json.

    Both reports say the same; report.json is the newest run's in the folder. The page NAME.html shows the run while it
    goes on, with pictures where --preview-prompt or --preview-every asks for them. These, snapshots, and the state that
    --resume goes on from are in the folder NAME.snapshots.
    """
    from .train import TrainRequest, run_train

    settings = ResidualSettings(
        steps=steps,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        schedule=schedule,
        layout=layout,
        bins=bins,
        parts=parts,
        where=where,
        replace_maps=replace_maps,
        replacement_end=replacement_end,
        weighting=weighting,
        restraint=OVERFITTING[overfitting],
        snapshot_every=snapshot_every,
        validation_draws=validation_draws,
        seed=seed,
    )
    templates = tuple(template or CAPTION_TEMPLATES)
    run_train(
        TrainRequest(
            model, images, word, out, settings, templates, continue_from, resume, storage, config, stop_at, masks,
            checkpointing, flip, tuple(preview_prompt or ()), preview_every, transparency, aspect, Finish(stop, take),
        )
    )  # fmt: skip


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="Say each concept's word, or <name> for the file NAME.safetensors.")],
    out: Annotated[Path, place(help="Folder for the pictures and report.json.")],
    model: Model = "tinyworld",
    config: Config = None,
    concept: Annotated[
        Optional[list[str]], typer.Option(help="FILE or FILE:strength; repeat for several.")  # noqa: UP045
    ] = None,
    lora: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="LoRA to put on the model, FILE or FILE:strength; repeat for several."),
    ] = None,
    negative: Annotated[str, typer.Option(help="Negative prompt.")] = "",
    count: Annotated[int, typer.Option(help="Pictures.")] = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    base_latent: Annotated[BaseLatent, typer.Option(help="Where the base stream's latent comes from.")] = "shared",
    residual_start: Annotated[float, typer.Option(help="Share of the run where residuals begin.")] = 0.0,
    residual_end: Annotated[float, typer.Option(help="... and end.")] = 1.0,
    replacement_start: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share of the run where map replacement begins; by default as each concept was trained."),
    ] = None,
    replacement_end: Annotated[Optional[float], typer.Option(help="... and ends; 0 for never.")] = None,  # noqa: UP045
    seed: Seed = 0,
) -> None:
    """Draw pictures of a prompt, with any number of concepts and LoRAs."""
    from .generate import GenerateRequest, run_generate

    sampling = {"steps": steps, "guidance": guidance, "base_latent": base_latent}
    residual, files, loras = Window(residual_start, residual_end), tuple(concept or ()), tuple(lora or ())
    run_generate(
        GenerateRequest(
            model, files, prompt, out, count, seed, negative, config, residual, replacement_start, replacement_end,
            sampling, loras,
        )
    )  # fmt: skip


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(callback=checked_path, help="A concept file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; 'training' is what the file says.")] = False,
    out: Annotated[Optional[Path], place(help="Also write it as report.json there.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="As every command takes one; inspecting draws nothing at random.")] = 0,
) -> None:
    """Print what a concept file holds."""
    del seed
    from .inspect import run_inspect

    run_inspect(file, as_json, out)


@app.command()
def demo(
    out: Annotated[Path, place(help="Folder to write.")] = Path("out/demo"),
    concept: Annotated[str, typer.Option(help="A TinyWorld concept.")] = "ember",
    steps: Annotated[int, typer.Option(help="Training steps.")] = _DEFAULT.steps,
    layout: LayoutOption = _DEFAULT.layout,
    resume: Resume = False,
    seed: Seed = 0,
) -> None:
    """Learn a TinyWorld concept, draw it where its photos never showed it, and score the result."""
    from .demo import run_demo

    run_demo(out, concept, ResidualSettings(steps=steps, layout=layout, seed=seed), resume)


for of_lora in (apt, blend, advise, grid):
    app.command()(of_lora)


@cache
def every_command() -> Callable[[], object]:
    """The app's commands and those of packages beside this one: the lab's."""
    for command in sorted(entry_points(group="infusion.commands")):
        app.command(command.name)(command.load())
    return get_command(app)


def run() -> None:
    """Run the command line; an `InfusionError` becomes one line and exit code 1."""
    show_anything()
    try:
        every_command()()
    except InfusionError as error:
        fail(error)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which need not be loaded for it
            raise
        fail(InfusionError(str(error)))

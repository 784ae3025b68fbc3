"""The command ``infusion``: its options. What the commands do is in `commands` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.embedded.sampling import BaseLatent
from infusion_core.errors import InfusionError
from infusion_core.residual_file import Storage
from infusion_core.residuals import Layout
from infusion_core.trainer import Schedule, TrainSettings, Weighting

from .console import fail

app = typer.Typer(
    name="infusion",
    help="Teach a diffusion model your subject from a few photos, in an 11 KB file, and change nothing else.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_DEFAULT = TrainSettings()


Model = Annotated[
    str,
    typer.Option(help="'tinyworld', or a local Stable Diffusion 1.x/2.x/XL: diffusers folder or .safetensors file."),
]
Config = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="For a --model that is one file: a diffusers folder of its kind, for configs and tokenizer."),
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
LayoutOption = Annotated[Layout, typer.Option(help="Where the residual lives; block is the smallest.")]


@app.command()
def train(
    images: Annotated[Path, typer.Option(help="Folder with 3-6 photos of the subject (JPEG, PNG, WebP).")],
    word: Annotated[str, typer.Option(help="The class word a prompt will say, e.g. 'cat'.")],
    out: Annotated[Path, typer.Option(help="The concept file to write, NAME.safetensors.")],
    model: Model = "tinyworld",
    config: Config = None,
    layout: LayoutOption = _DEFAULT.layout,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = _DEFAULT.steps,
    batch_size: Annotated[int, typer.Option(help="Samples per pass.")] = _DEFAULT.batch_size,
    accumulation: Annotated[int, typer.Option(help="Passes per optimizer step.")] = _DEFAULT.accumulation,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = _DEFAULT.learning_rate,
    schedule: Annotated[Schedule, typer.Option(help="Of the learning rate.")] = _DEFAULT.schedule,
    weighting: Annotated[Weighting, typer.Option(help="Of the loss.")] = _DEFAULT.weighting,
    bins: Annotated[int, typer.Option(help="Timestep bins, each with its own residual.")] = _DEFAULT.bins,
    replace_maps: Annotated[
        bool,
        typer.Option(
            help="Attend with the base model's maps. Without: faster; then generate with --replacement-end 0."
        ),
    ] = _DEFAULT.replace_maps,
    template: Annotated[
        Optional[list[str]], typer.Option(help="Caption with {} for the word; repeat for several.")  # noqa: UP045
    ] = None,
    snapshot_every: Annotated[int, typer.Option(help="Steps between snapshots.")] = _DEFAULT.snapshot_every,
    validation_draws: Annotated[
        int, typer.Option(help="Fixed draws that the validation loss of a snapshot is the mean of.")
    ] = _DEFAULT.validation_draws,
    continue_from: Annotated[
        Optional[Path], typer.Option("--continue", help="A concept file to continue from.")  # noqa: UP045
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of the same --out.")] = False,
    storage: Annotated[Storage, typer.Option(help="How to store the numbers.")] = "fp16",
    seed: Seed = _DEFAULT.seed,
) -> None:
    """Learn a concept from photos; write a concept file and a report.json beside it."""
    from .train import TrainRequest, run_train

    settings = TrainSettings(
        steps=steps,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        schedule=schedule,
        layout=layout,
        bins=bins,
        replace_maps=replace_maps,
        weighting=weighting,
        snapshot_every=snapshot_every,
        validation_draws=validation_draws,
        seed=seed,
    )
    templates = tuple(template or CAPTION_TEMPLATES)
    run_train(TrainRequest(model, images, word, out, settings, templates, continue_from, resume, storage, config))


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="Say each concept's word, or <name> for the file NAME.safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and report.json.")],
    model: Model = "tinyworld",
    config: Config = None,
    concept: Annotated[
        Optional[list[str]], typer.Option(help="FILE or FILE:strength; repeat for several.")  # noqa: UP045
    ] = None,
    negative: Annotated[str, typer.Option(help="Negative prompt.")] = "",
    count: Annotated[int, typer.Option(help="Pictures.")] = 4,
    steps: Annotated[Optional[int], typer.Option(help="DDIM steps; the model's own by default.")] = None,  # noqa: UP045
    guidance: Annotated[
        Optional[float], typer.Option(help="Guidance scale; the model's own by default.")  # noqa: UP045
    ] = None,
    base_latent: Annotated[BaseLatent, typer.Option(help="Where the base stream's latent comes from.")] = "shared",
    residual_start: Annotated[float, typer.Option(help="Share of the run where residuals begin.")] = 0.0,
    residual_end: Annotated[float, typer.Option(help="... and end.")] = 1.0,
    replacement_start: Annotated[float, typer.Option(help="Share of the run where map replacement begins.")] = 0.0,
    replacement_end: Annotated[float, typer.Option(help="... and ends.")] = 1.0,
    seed: Seed = 0,
) -> None:
    """Draw pictures of a prompt, with any number of concepts."""
    from infusion_core.embedded.sampling import Window

    from .commands import run_generate

    run_generate(
        model,
        concept or [],
        prompt,
        count,
        out,
        seed,
        negative,
        config,
        steps=steps,
        guidance=guidance,
        base_latent=base_latent,
        residual=Window(residual_start, residual_end),
        replacement=Window(replacement_start, replacement_end),
    )


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A concept file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Optional[Path], typer.Option(help="Also write it as report.json there.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="As every command takes one; inspecting draws nothing at random.")] = 0,
) -> None:
    """Print what a concept file holds."""
    del seed
    from .commands import run_inspect

    run_inspect(file, as_json, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("out/demo"),
    concept: Annotated[str, typer.Option(help="A TinyWorld concept.")] = "ember",
    steps: Annotated[int, typer.Option(help="Training steps.")] = _DEFAULT.steps,
    layout: LayoutOption = _DEFAULT.layout,
    seed: Seed = 0,
) -> None:
    """Learn a TinyWorld concept, draw it where its photos never showed it, and score the result."""
    from .demo import run_demo

    run_demo(out, concept, TrainSettings(steps=steps, layout=layout, seed=seed))


@app.command()
def lab(
    out: Annotated[Path, typer.Option(help="Folder to write; what is finished there is not done again.")] = Path(
        "out/lab"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Under ten minutes on two cores, instead of hours.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="Choose the baselines' settings on other concepts.")] = False,
    only: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Study: steps, fidelity, several, ablations or toy; repeat for several."),
    ] = None,
    method: Annotated[
        Optional[list[str]], typer.Option(help="Key of a method, e.g. lora; repeat for several.")  # noqa: UP045
    ] = None,
    concept: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A concept, or a tuning concept (ablations, --tune); repeat for several."),
    ] = None,
    most_steps: Annotated[int, typer.Option(min=0, help="No training is longer; 0 for no limit of yours.")] = 0,
    model: Model = "tinyworld",
    config: Config = None,
    dataset: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With --model: the folder 'dataset' of DreamBooth's repository."),
    ] = None,
    clip: Annotated[Optional[Path], typer.Option(help="With --model: folder of CLIP ViT-B/32.")] = None,  # noqa: UP045
    dino: Annotated[Optional[Path], typer.Option(help="With --model: folder of DINO ViT-S/16.")] = None,  # noqa: UP045
    token: Annotated[str, typer.Option(help="With --model: the rare word that stands for a subject.")] = "sks",
    count: Annotated[int, typer.Option(help="With --model: pictures per prompt.")] = 5,
    limit: Annotated[int, typer.Option(help="With --model: most subjects, prompts and steps; 0 for all.")] = 0,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Draw in mixed precision: faster on a processor with bfloat16 units.")
    ] = False,
    finished: Annotated[bool, typer.Option("--finished", help="Compute nothing: report what is there.")] = False,
    seed: Seed = 0,
) -> None:
    """Compare every method: one page with figures, tables and pictures (needs the extra 'lab').

    On TinyWorld by default; with --model it is the paper's Table 1 on DreamBooth's dataset.
    """
    try:
        from infusion_lab.real import Request, run_real
        from infusion_lab.run import run_lab
        from infusion_lab.tune import run_tune
    except ModuleNotFoundError as error:
        raise InfusionError(f"{error.name} is not installed; run: pip install 'infusion[standalone,lab]'") from error
    if model != "tinyworld":
        if not (dataset and clip and dino):
            raise InfusionError("--model needs --dataset, --clip and --dino; give the folders, or leave --model out")
        run_real(Request(model, dataset, clip, dino, out, config, token, count, limit, seed), method or [])
    elif tune:
        run_tune(out, quick, concept or [], method or [], seed, bf16)
    else:
        run_lab(out, quick, only or [], method or [], concept or [], most_steps, seed, bf16, finished)


def run() -> None:
    """Run the command line; an `InfusionError` becomes one line and exit code 1."""
    try:
        app()
    except InfusionError as error:
        fail(error)

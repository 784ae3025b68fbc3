"""The command ``infusion lab``: its options alone. What it does is imported when it runs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Optional

import typer

from infusion_cli.options import Config, Model, Seed, place
from infusion_core.errors import InfusionError, not_installed

# What an option needs beside it, and what has no meaning beside another: it would be ignored, and hours with it.
NEEDS = {
    **dict.fromkeys(("dataset", "clip", "dino", "hps", "token", "count", "limit", "pictures", "pairs"), "model"),
    **dict.fromkeys(("figure_concepts", "figure_prompts", "samples", "at_steps"), "pictures"),
    "second_token": "pairs",
    "trials": "tune",
}
NOT_BESIDE = {
    "model": ("quick", "tune", "trials", "concept", "most_steps", "bf16", "finished"),
    "tune": ("only", "most_steps", "finished"),
}


def lab(
    context: typer.Context,
    out: Annotated[Path, place(help="Folder to write; what is finished there is not done again.")] = Path("out/lab"),
    quick: Annotated[bool, typer.Option("--quick", help="Under ten minutes on two cores, instead of hours.")] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose every method's settings on other concepts; writes OUT/tuned.json.")
    ] = False,
    trials: Annotated[int, typer.Option(min=0, help="With --tune: settings tried per method; 0 for its own.")] = 0,
    only: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Study: steps, fidelity, several, blend, apt, restraints, ablations, stopping or toy. "
            "With --model: table1, drift or several. Repeat for several."
        ),
    ] = None,
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Key of a method, e.g. lora for all its recipes or lora-published for one; repeat for several."
        ),
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
        place(help="With --model: DreamBooth's folder 'dataset', or Custom Diffusion's 'customconcept101'."),
    ] = None,
    clip: Annotated[Optional[Path], place(help="With --model: folder of CLIP ViT-B/32.")] = None,  # noqa: UP045
    dino: Annotated[Optional[Path], place(help="With --model: folder of DINO ViT-S/16.")] = None,  # noqa: UP045
    hps: Annotated[Optional[Path], place(help="With --model: folder of HPSv2, for what people prefer.")] = None,  # noqa: UP045
    token: Annotated[str, typer.Option(help="With --model: the rare word that stands for a subject.")] = "sks",
    count: Annotated[int, typer.Option(min=1, help="With --model: pictures per prompt.")] = 5,
    limit: Annotated[int, typer.Option(min=0, help="With --model: most subjects, prompts and steps; 0 for all.")] = 0,
    pictures: Annotated[
        Optional[Path],  # noqa: UP045
        place(help="With --model: captioned pictures (a .txt beside each), for the paper's figures 10 and 11."),
    ] = None,
    figure_concepts: Annotated[int, typer.Option(min=1, help="With --pictures: subjects of the figures.")] = 8,
    figure_prompts: Annotated[int, typer.Option(min=1, help="With --pictures: prompts of a subject's class.")] = 20,
    samples: Annotated[
        int,
        typer.Option(
            min=2, help="With --pictures: latents drawn of each class, over all its prompts; and draws on the pictures."
        ),
    ] = 1000,
    at_steps: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(
            min=1,
            help="With --pictures: training steps of a point, repeat for several; else 100, 200, 400, 1000, 2000.",
        ),
    ] = None,
    pairs: Annotated[
        int, typer.Option(min=0, help="With --model: pairs of subjects drawn together, is one missing? 0 for none.")
    ] = 0,
    second_token: Annotated[
        str, typer.Option(help="With --pairs: the rare word that stands for the second subject.")
    ] = "ktn",
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Draw in mixed precision: faster on a processor with bfloat16 units.")
    ] = False,
    finished: Annotated[bool, typer.Option("--finished", help="Compute nothing: report what is there.")] = False,
    seed: Seed = 0,
) -> None:
    """Compare every method: one page with figures, tables and pictures (needs the extra 'lab').

    On TinyWorld by default; with --model it is the paper's Table 1 with real weights on a published dataset.
    """
    with_weights = model != "tinyworld"
    _check({n for n in context.params if (with_weights if n == "model" else _is_given(context, n))})
    try:
        from .real.run import run_real
        from .real.setup import STEPS, Request
        from .run import run_lab

        if tune:
            from .tune import run_tune
    except ModuleNotFoundError as error:
        extras = "standalone,lab,tune" if tune else "standalone,lab"
        missing = (error.name or "").partition(".")[0]
        raise InfusionError(not_installed(missing, extras)) from error
    if with_weights:
        if not (dataset and clip and dino):
            raise InfusionError("--model needs --dataset, --clip and --dino; give the folders, or leave --model out")
        request = Request(
            model, dataset, clip, dino, out, config, token, second_token, count, limit, seed, pictures,
            figure_concepts, figure_prompts, samples, tuple(at_steps or STEPS), pairs, tuple(only or ()), hps,
        )  # fmt: skip
        run_real(request, method or [])
    elif tune:
        run_tune(out, quick, concept or [], method or [], seed, bf16, trials)
    else:
        run_lab(out, quick, only or [], method or [], concept or [], most_steps, seed, bf16, finished)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _check(given: Collection[str]) -> None:
    """Raises InfusionError: an option would do nothing."""
    for name in given:
        if name in NEEDS and NEEDS[name] not in given:
            raise InfusionError(
                f"{_option(name)} needs {_option(NEEDS[name])}; give it too, or leave {_option(name)} out"
            )
    for name, others in NOT_BESIDE.items():
        for other in others:
            if {name, other} <= {*given}:
                raise InfusionError(f"{_option(other)} does nothing with {_option(name)}; leave one of them out")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"

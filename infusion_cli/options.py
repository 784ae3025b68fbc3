"""Options that several commands have."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

import typer

from infusion_core.errors import InfusionError, printable
from infusion_core.noise import SEEDS
from infusion_core.residuals import Layout
from infusion_core.training.stopping import Stop, Take

AnyPath = TypeVar("AnyPath", Path, str, None)


def checked_path(path: AnyPath) -> AnyPath:
    """A file or folder, or what may become one; pipes and devices would keep whoever reads them waiting.

    Raises:
        InfusionError: it is neither, or cannot be a path at all.
    """
    if path is None:
        return path
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InfusionError(f"{printable(str(path))} cannot be a path: {reason}; give another one") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InfusionError(f"{path} is neither a file nor a folder; give one of them")
    return path


def place(*names: str, help: str) -> Any:
    """An option whose value is a path, see `checked_path`."""
    return typer.Option(*names, callback=checked_path, help=help)


def place_argument(help: str) -> Any:
    """An argument whose value is a path, see `checked_path`."""
    return typer.Argument(callback=checked_path, help=help)


Model = Annotated[
    str,
    place(help="'tinyworld', or a local Stable Diffusion 1.x/2.x/XL: diffusers folder or .safetensors file."),
]
Config = Annotated[
    Optional[Path],  # noqa: UP045
    place(help="For a --model that is one file: a diffusers folder of its kind, for configs and tokenizer."),
]
Steps = Annotated[Optional[int], typer.Option(help="DDIM steps; the model's own by default.")]  # noqa: UP045
Guidance = Annotated[Optional[float], typer.Option(help="Guidance scale; the model's own by default.")]  # noqa: UP045
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with an interrupted run of the same --out, photos, model and settings."),
]
Seed = Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="Seed of every random choice.")]
Masks = Annotated[
    Optional[Path],  # noqa: UP045
    place(
        help="Folder of masks, white where the subject is, each named as its photo; else NAME-masklabel.png beside it."
    ),
]
Transparency = Annotated[
    bool,
    typer.Option(
        help="Where a photo without a mask is transparent, its transparency is the mask; else it turns white."
    ),
]
Aspect = Annotated[
    bool,
    typer.Option(
        help="Photos keep their shape, at about the size of the square; else the middle square of each is used."
    ),
]
Checkpointing = Annotated[bool, typer.Option(help="Needs less memory and takes longer; what is learned is the same.")]
Flip = Annotated[
    bool,
    typer.Option(help="Show each photo mirrored as well; not for a subject with letters, or another left and right."),
]
StopAt = Annotated[
    float, typer.Option(help="End when the photos are known by heart so far, 0 to 1, the mean over noise; 0 for never.")
]
PreviewPrompt = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="Drawn while training, with {} for the subject; repeat for several. 'a photo of a {}' without."),
]
PreviewEvery = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=0, max=1_000_000, help="Steps between such pictures; with --preview-prompt every snapshot's, else never."
    ),
]
StopOption = Annotated[
    Stop,
    typer.Option("--stop", help="plateau: end at the snapshot at which it hardly gets nearer to the photos any more."),
]
TakeOption = Annotated[
    Take,
    typer.Option(
        "--take", help="What --out holds: last: the last step; best: the snapshot at which --stop plateau would end."
    ),
]
LayoutOption = Annotated[Layout, typer.Option(help="Where the residual lives; block is the smallest.")]

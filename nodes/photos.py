"""Load Subject Photos: the photos to train on, from a folder or uploaded."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..infusion_core.errors import InfusionError
from . import photo_files
from .host.compat import ADVANCED, schema
from .pictures import squares_of
from .sockets import BoxSocket
from .subject import boxes_of
from .widgets import lines_of


class InfusionLoadPhotos(io.ComfyNode):  # type: ignore[misc]
    """Load Subject Photos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionLoadPhotos",
            display_name="Load Subject Photos",
            category="Infusion",
            description="The photos to train on, as squares of one size. Files that cannot be read are named.",
            search_aliases=["infusion", "load images", "upload photos", "folder", "dataset", "training images"],
            has_intermediate_output=True,  # thumbnails are shown of a cached run too
            inputs=[
                io.String.Input(
                    "folder", default="",
                    tooltip="A folder of photos: its name below ComfyUI's input folder, or a whole path. Empty: none.",
                ),
                io.String.Input(
                    "photos", default="", multiline=True,
                    tooltip="Uploaded photos, one file name per line. The button below uploads several at once; files "
                    "dropped on the node are uploaded too.",
                ),
                io.Int.Input(
                    "resolution", default=512, min=64, max=2048, step=8,
                    tooltip="Edge of the squares in pixels, as in Infusion Train: 512 for SD 1.x, 1024 for XL.",
                ),
                io.Combo.Input(
                    "crop", options=list(photo_files.CROPS), default=photo_files.CENTER,
                    tooltip="center: the middle square of a photo. subject: the smallest square round the box or mask, "
                    "for a subject that stands at the side. whole: all of each photo, for crop 'keep shape' when "
                    "training.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where the subject is: a mask per photo, or one for all."),
                BoxSocket.Input(
                    "box", optional=True, extra_dict={"forceInput": True},
                    tooltip="Where the subject is, in pixels of the photo: a box per photo, or one for all.",
                ),
                io.Boolean.Input(
                    "transparency", default=True, optional=True,
                    tooltip="Where neither mask nor box says where the subject is and a photo is transparent around "
                    "it, its transparency is the mask. Off: what is transparent is white, and counts.", **ADVANCED,
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True,
                    tooltip="The squares, as one batch, for Infusion Train; whole photos one by one.",
                ),
                io.Mask.Output(
                    display_name="mask", is_output_list=True,
                    tooltip="Where the subject is in each photo. All white without box, mask and transparency.",
                ),
                io.String.Output(display_name="names", tooltip="The files that were taken, one per line."),
                io.String.Output(
                    display_name="captions", is_output_list=True,
                    tooltip="For Infusion Train or APT Train: what lies beside each photo as a text of its name, "
                    "cat.txt beside cat.jpg.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder: str | None = None, photos: str | None = None) -> bool | str:
        """Say before the run that there is nothing to load; linked texts are seen later."""
        try:
            return folder is None or photos is None or bool(photo_files.files(folder, lines_of(photos)))
        except InfusionError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, photos: str | None = None, **_: Any) -> str:
        """Load again when a photo has changed; what a linked text names is not known yet."""
        if folder is None or photos is None:
            return ""
        return photo_files.fingerprint(photo_files.files(folder, lines_of(photos)))

    @classmethod
    def execute(
        cls, folder: str, photos: str, resolution: int, crop: str, mask: Tensor | None = None, box: Any = None,
        transparency: bool = True,
    ) -> io.NodeOutput:  # fmt: skip
        """Read the files and show what was taken."""
        paths = photo_files.files(folder, lines_of(photos))
        taken = photo_files.take(paths, resolution, mask, boxes_of(box), crop, transparency)
        if crop == photo_files.SUBJECT and mask is None and box is None and not taken.cut_out:
            raise InfusionError("crop is 'subject' without a mask or box; connect one, or set crop to 'center'")
        pixels = [one.pixels[None] for one in taken.squares]
        masks = [one.mask[None] for one in taken.squares]
        previews = squares_of(pixels, resolution)
        shown = {**ui.PreviewImage(previews, cls=cls).as_dict(), **ui.PreviewText(taken.told()).as_dict()}
        if crop != photo_files.WHOLE:
            pixels, masks = [torch.cat(pixels)], [torch.cat(masks)]
        return io.NodeOutput(
            pixels, masks, "\n".join(taken.names), ["\n".join(own) for own in taken.captions], ui=shown
        )

"""Photos of a subject with what lies beside them: captions and masks, as trainers of LoRAs know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from ..captions import CAPTION_SUFFIX, read_captions
from ..errors import InfusionError, printable
from ..paths import is_there
from ..photos import Photo, Skipped, read_photo, read_photos
from ..snapshot_files import CHART_END
from .photos import find_photos, no_larger, none_in

MASK_ENDS = ("-masklabel", ".mask")  # of a mask's name without its suffix, beside the photo
NO_MASK = "called as a mask is, and no photo's; a mask has its photo's name: cat-masklabel.png for cat.jpg"


@dataclass(frozen=True)
class SubjectPhotos:
    """Photos, each with what is known of it.

    Attributes:
        pictures: RGB.
        captions: lines that are said of each; none where nothing lies beside it.
        masks: white where the subject is, greyscale, of the picture's size; None where there is none.
        names: of the files, for people.
        cut_out: names of those whose mask is their own transparency.
    """

    pictures: tuple[Image.Image, ...]
    captions: tuple[tuple[str, ...], ...]
    masks: tuple[Image.Image | None, ...]
    names: tuple[str, ...]
    cut_out: tuple[str, ...] = ()

    def with_mirrored(self) -> SubjectPhotos:
        """These, and each once more with left and right exchanged."""
        pictures = (*self.pictures, *map(ImageOps.mirror, self.pictures))
        masks = (*self.masks, *(mask and ImageOps.mirror(mask) for mask in self.masks))
        return SubjectPhotos(pictures, self.captions * 2, masks, self.names * 2, self.cut_out)

    def some(self, numbers: Sequence[int]) -> SubjectPhotos:
        """Those of some numbers."""
        return SubjectPhotos(
            tuple(self.pictures[number] for number in numbers),
            tuple(self.captions[number] for number in numbers),
            tuple(self.masks[number] for number in numbers),
            tuple(self.names[number] for number in numbers),
            self.cut_out,
        )

    @classmethod
    def of(cls, pictures: Sequence[Image.Image] | SubjectPhotos) -> SubjectPhotos:
        """Photos of which nothing is known, or as they are.

        Raises:
            InfusionError: none.
        """
        if isinstance(pictures, SubjectPhotos):
            return pictures
        count = len(pictures)
        if not count:
            raise InfusionError("no photos to learn from; give at least one")
        names = tuple(f"photo {number}" for number in range(1, count + 1))
        return cls(tuple(pictures), ((),) * count, (None,) * count, names)


def load_subject(
    folder: Path, edge: int, skipped: list[Skipped], masks: Path | None = None, transparency: bool = True,
    aspect: bool = False,
) -> SubjectPhotos:  # fmt: skip
    """The photos of a folder (or the one file), in natural order.

    Beside ``cat.jpg`` may lie ``cat.txt`` with its captions, a line each, and ``cat-masklabel.png`` or ``cat.mask.png``
    with its mask. A photo without one that is transparent around its subject is its own mask.

    Args:
        folder: of the photos.
        edge: px of the squares that are wanted, see `load_photos`.
        skipped: grows by the files that cannot be used, with the reason.
        masks: folder of masks, each of its photo's name, or named as beside the photos; what lies there counts where it
            has none.
        transparency: take it for a mask.
        aspect: photos keep their shape, instead of the squares.

    Raises:
        InfusionError: the folder is missing, no photo in it can be used, a caption or mask is damaged, `masks` holds
            none of a photo, or almost nothing of a transparent photo is seen.
    """
    beside = find_photos(folder)
    skipped += [Skipped(printable(path.name), "a chart of an earlier run") for path in beside if _is_chart(path)]
    photos = list(
        read_photos([path for path in beside if not _is_mask(path) and not _is_chart(path)], skipped, 2 * edge)
    )
    if not photos:
        raise InfusionError(none_in(folder, skipped))
    masks_there = {mask for photo in photos for mask in _masks_of(photo, photo.path.parent)}
    skipped += [Skipped(printable(path.name), NO_MASK) for path in beside if _is_mask(path) and path not in masks_there]
    told = {f"{photo.path.stem}{CAPTION_SUFFIX}" for photo in photos}
    skipped[:] = [file for file in skipped if file.name not in told]
    cut = partial(no_larger, edge=edge) if not aspect else lambda picture: picture
    pictures = tuple(cut(photo.picture) for photo in photos)
    if masks is not None:
        _require_masks(masks, photos)
    given = [_mask(photo, masks) for photo in photos]
    own = [photo.subject if transparency and mask is None else None for photo, mask in zip(photos, given, strict=True)]
    return SubjectPhotos(
        pictures,
        tuple(read_captions(photo.path.with_suffix(CAPTION_SUFFIX)) for photo in photos),
        tuple((whole := mask or seen) and cut(whole) for mask, seen in zip(given, own, strict=True)),
        tuple(photo.name for photo in photos),
        tuple(photo.name for photo, seen in zip(photos, own, strict=True) if seen),
    )


def _is_mask(path: Path) -> bool:
    return path.stem.endswith(MASK_ENDS)


def _is_chart(path: Path) -> bool:
    return path.name.endswith(CHART_END)


def _masks_of(photo: Photo, folder: Path) -> list[Path]:
    """What a folder holds of a photo's mask; of its very name only where it is not the photos' own folder."""
    path = photo.path
    whole = () if folder.resolve() == path.parent.resolve() else (path.name, f"{path.stem}.png")
    names = (*whole, *(f"{path.stem}{end}.png" for end in MASK_ENDS))
    return [folder / name for name in names if is_there(folder / name)]


def _require_masks(masks: Path, photos: Sequence[Photo]) -> None:
    """Raises InfusionError: it is no folder of masks, or of other photos."""
    if not masks.is_dir():
        raise InfusionError(f"{masks} is no folder; give the folder of the photos' masks (--masks)")
    if not any(_masks_of(photo, masks) for photo in photos):
        raise InfusionError(
            f"{masks} holds no mask of any photo; call each as its photo, such as {photos[0].path.stem}.png (--masks)"
        )


def _mask(photo: Photo, masks: Path | None) -> Image.Image | None:
    """A photo's mask, of its size.

    Raises:
        InfusionError: there is one, and it cannot be read.
    """
    given = [] if masks is None else _masks_of(photo, masks)
    for place in (*given, *_masks_of(photo, photo.path.parent)):
        try:
            mask = read_photo(place).convert("L")
        except InfusionError as error:
            raise InfusionError(f"the mask {place} cannot be used: {error}; paint it again, or remove it") from error
        return mask.resize(photo.picture.size, Image.Resampling.BILINEAR)
    return None

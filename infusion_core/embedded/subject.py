"""Photos of a subject with what lies beside them: captions and masks, as trainers of LoRAs know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..captions import captions_of_photo
from ..errors import InfusionError
from ..photos import Photo, Skipped, read_photo, read_photos
from ..training.shown import Said
from .photos import find_photos, no_larger, none_in

MASK_ENDS = ("-masklabel", ".mask")  # of a mask's name without its suffix, beside the photo
MOST_CAPTION = 100_000  # bytes of a caption file
CAPTION = ".txt"


@dataclass(frozen=True)
class SubjectPhotos:
    """Photos, each with what is known of it.

    Attributes:
        pictures: RGB.
        captions: lines that are said of each; none where nothing lies beside it.
        masks: white where the subject is, greyscale, of the picture's size; None where there is none.
        names: of the files, for people.
    """

    pictures: tuple[Image.Image, ...]
    captions: tuple[tuple[str, ...], ...]
    masks: tuple[Image.Image | None, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, pictures: Sequence[Image.Image]) -> SubjectPhotos:
        """Photos of which nothing is known."""
        count = len(pictures)
        names = tuple(f"photo {number}" for number in range(1, count + 1))
        return cls(tuple(pictures), ((),) * count, (None,) * count, names)


def load_subject(folder: Path, edge: int, skipped: list[Skipped], masks: Path | None = None) -> SubjectPhotos:
    """The photos of a folder (or the one file), in natural order.

    Beside ``cat.jpg`` may lie ``cat.txt`` with its captions, a line each, and ``cat-masklabel.png`` or ``cat.mask.png``
    with its mask.

    Args:
        folder: of the photos.
        edge: px of the squares that are wanted, see `load_photos`.
        skipped: grows by the files that cannot be used, with the reason.
        masks: folder of masks, each of its photo's name; what lies beside the photos counts where it has none.

    Raises:
        InfusionError: the folder is missing, no photo in it can be used, or a caption or mask is damaged.
    """
    beside = find_photos(folder)
    photos = list(read_photos([path for path in beside if not _is_mask(path)], skipped, 2 * edge))
    if not photos:
        raise InfusionError(none_in(folder, skipped))
    told = {f"{photo.path.stem}{CAPTION}" for photo in photos}
    skipped[:] = [file for file in skipped if file.name not in told]
    pictures = tuple(no_larger(photo.picture, edge) for photo in photos)
    return SubjectPhotos(
        pictures,
        tuple(_captions(photo.path.with_suffix(CAPTION)) for photo in photos),
        tuple(_mask(photo, edge, masks) for photo in photos),
        tuple(photo.name for photo in photos),
    )


def _is_mask(path: Path) -> bool:
    return path.stem.endswith(MASK_ENDS)


def _captions(path: Path) -> tuple[str, ...]:
    """The lines of a caption file; none where there is no such file.

    Raises:
        InfusionError: it is not text.
    """
    if not path.is_file():
        return ()
    if path.stat().st_size > MOST_CAPTION:
        raise InfusionError(f"{path} is no caption: it has more than {MOST_CAPTION} bytes; write a line or a few")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InfusionError(f"the caption {path} cannot be read ({error}); save it as text in UTF-8") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _mask(photo: Photo, edge: int, masks: Path | None) -> Image.Image | None:
    """A photo's mask, cut as the photo is.

    Raises:
        InfusionError: there is one, and it cannot be read.
    """
    path = photo.path
    given = [] if masks is None else [masks / path.name, masks / f"{path.stem}.png"]
    for place in (*given, *(path.with_name(f"{path.stem}{end}.png") for end in MASK_ENDS)):
        if not place.is_file():
            continue
        try:
            mask = read_photo(place).convert("L")
        except InfusionError as error:
            raise InfusionError(f"the mask {place} cannot be used: {error}; paint it again, or remove it") from error
        return no_larger(mask.resize(photo.picture.size, Image.Resampling.BILINEAR), edge)
    return None


def said_of(
    photos: SubjectPhotos, templates: Sequence[str], word: str, needed: bool = True
) -> tuple[list[str], Said | None]:
    """All captions, and which of them may be said of each photo; None for any of any.

    Args:
        photos: with captions of their own or without.
        templates: filled, for photos without.
        word: what captions say for the subject.
        needed: each must.

    Raises:
        InfusionError: a caption of a photo does not.
    """
    if not any(photos.captions):
        return list(templates), None
    every: list[str] = []
    said = []
    for lines, name in zip(photos.captions, photos.names, strict=True):
        own = captions_of_photo(lines, word, name, needed) or templates
        every += [caption for caption in own if caption not in every]
        said.append([every.index(caption) for caption in own])
    return every, said

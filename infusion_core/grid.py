"""Pictures side by side with labels, as one picture. Pillow's own font, so that it looks alike on every machine."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, PAPER = "#22272e", "white"
GAP = 6  # px
MOST_CELL = 256  # px, the longer edge of a picture


def labelled_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str], ink: str = INK, paper: str = PAPER
) -> Image.Image:
    """A grid with a label above each column and left of each row.

    Args:
        rows: label and pictures, one for each column; smaller pictures keep their size, larger ones shrink.
        columns: labels.
        ink, paper: colours of labels and of what is behind them.

    Raises:
        ValueError: a row has another number of pictures than there are columns, or there are none.
    """
    if not rows or not columns or any(len(pictures) != len(columns) for _, pictures in rows):
        raise ValueError("a grid needs rows of as many pictures as it has columns")
    shown = [(label, [shrunk(picture) for picture in pictures]) for label, pictures in rows]
    width, height = (max(p.size[i] for _, pictures in shown for p in pictures) for i in (0, 1))
    font = ImageFont.load_default(max(11, width // 11))
    heads = [_wrapped(label, width, font) for label in columns]
    sides = [_wrapped(label, max(width, 90), font) for label, _ in shown]
    line = font.getbbox("Ag")[3] + 3
    left = int(max((font.getlength(part) for side in sides for part in side), default=0)) + 2 * GAP
    top = int(line * max(map(len, heads))) + 2 * GAP
    size = left + len(columns) * (width + GAP), top + len(shown) * (height + GAP)
    grid = Image.new("RGB", (int(size[0]), int(size[1])), paper)
    draw = ImageDraw.Draw(grid)
    for column, head in enumerate(heads):
        draw.multiline_text((left + column * (width + GAP), GAP), "\n".join(head), ink, font, spacing=3)
    for index, ((_, pictures), side) in enumerate(zip(shown, sides, strict=True)):
        y = top + index * (height + GAP)
        draw.multiline_text((GAP, y), "\n".join(side), ink, font, spacing=3)
        for column, picture in enumerate(pictures):
            grid.paste(picture, (left + column * (width + GAP), y))
    return grid


def shrunk(picture: Image.Image) -> Image.Image:
    """A picture as a grid shows it."""
    copy = picture.convert("RGB")
    copy.thumbnail((MOST_CELL, MOST_CELL), Image.Resampling.LANCZOS)
    return copy


def _wrapped(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """A label in lines that fit; a word that is wider is cut."""
    lines = [""]
    for word in text.split():
        while word and font.getlength(word) > width:
            end = next(i for i in range(len(word), 0, -1) if i == 1 or font.getlength(word[:i]) <= width)
            lines.append(word[:end])
            word = word[end:]
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [part for part in lines if part] or [""]

"""What the registry's page shows of the pack: pictures at the repository's address, of the sizes the registry takes."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BRAND = REPOSITORY / "docs" / "brand"


def field(name: str) -> str:
    """A field of pyproject.toml by its name; Python 3.10 has no reader of TOML."""
    found = re.findall(rf'^{name} = "(.+?)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(found) == 1
    return found[0]


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:])


@pytest.mark.parametrize("name", ["Icon", "Banner"])
def test_its_pictures_are_files_of_the_repository_it_names(name):
    raw = field("Repository").replace("https://github.com/", "https://raw.githubusercontent.com/") + "/main/"
    assert field(name).startswith(raw)
    assert (REPOSITORY / field(name).removeprefix(raw)).is_file()


def test_the_icon_is_a_square_of_at_most_400_pixels():
    width, height = png_size(BRAND / "icon.png")
    assert width == height <= 400
    assert (BRAND / "icon.png").stat().st_size <= 30_000


def test_the_banner_is_21_to_9():
    width, height = png_size(BRAND / "banner.png")
    assert width * 9 == height * 21
    assert (BRAND / "banner.png").stat().st_size <= 120_000


@pytest.mark.parametrize("name", ["icon", "banner"])
def test_a_drawing_needs_no_font_and_no_other_file(name):
    drawing = (BRAND / f"{name}.svg").read_text()
    assert not re.search(r"<text|<image|<style|href|@import", drawing)
    size = re.search(r'width="(\d+)" height="(\d+)" viewBox', drawing)
    assert size
    assert tuple(map(int, size.groups())) == png_size(BRAND / f"{name}.png")

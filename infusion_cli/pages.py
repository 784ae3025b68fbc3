"""Self-contained pages: pictures and figures inside the HTML, no other file."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import jinja2
import matplotlib
from PIL import Image

from .output import png_bytes

matplotlib.use("Agg")
from matplotlib.figure import Figure

DPI = 110


def inline_picture(picture: Image.Image) -> str:
    """A picture as the URL of itself."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()


def figure_png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def inline_figure(figure: Figure) -> str:
    """A figure as the URL of itself."""
    return "data:image/png;base64," + base64.b64encode(figure_png(figure)).decode()


def render_page(template: str, package: str = __package__, **values: Any) -> str:
    """A page made by a template of a package; all share this package's style."""
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader(__package__)])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    return environment.get_template(template).render(**values)

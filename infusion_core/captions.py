"""Captions for training, neutral so that the word's own tokens carry the subject, and prompts about other things."""

from __future__ import annotations

from .errors import InfusionError

CAPTION_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "a rendering of a {}",
    "a good photo of a {}",
    "a clean photo of a {}",
    "a bright photo of a {}",
    "a nice photo of a {}",
    "a photo of the {}",
    "a photo of one {}",
)
# What a divergence on other prompts is measured with unless the user gives other ones.
OTHER_PROMPTS = ("a photo of a dog", "a photo of a house by the sea", "a bowl of fruit on a table", "a street at night")


def fill(templates: tuple[str, ...], word: str) -> tuple[str, ...]:
    """The templates with a word in place of ``{}``.

    Raises:
        InfusionError: no templates, or one without ``{}``.
    """
    if not templates:
        raise InfusionError("no caption templates; give at least one, such as 'a photo of a {}'")
    for template in templates:
        if template.count("{}") != 1:
            raise InfusionError(f"the caption template {template!r} must hold {{}} once, where the word goes")
    return tuple(t.replace("{}", word) for t in templates)

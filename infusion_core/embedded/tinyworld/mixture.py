"""What share of each of several looks a thing wears: 0 for a look that is not there, 1 for one that is all there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from .fitting import as_pixels, locate
from .painting import OUTLINE_PX, Pixels, paint, silhouette
from .world import COLOURS, Look, Scene

MEAN_LOOK = np.mean([*COLOURS.values()], axis=0, dtype=np.float32) / 255  # of a thing whose look nobody chose


def look_shares(image: Image.Image | Pixels, scene: Scene, shape: str, looks: Sequence[Look]) -> tuple[float, ...]:
    """How much of each look the thing of a shape wears.

    Inside the thing, where it was found, the picture is explained as the mean of all looks plus shares of these
    (least squares). A look that nobody chose has no part of them on average, however like one of them it happens to be;
    so who has learned nothing has shares of 0, not of a half.

    Args:
        image: 128x128, a PIL image or floats (H, W, 3) in [0, 1].
        scene: what it should show.
        shape: of the thing.
        looks: at least one, no two alike.

    Raises:
        ValueError: the picture has another size, or the scene has no such thing.
    """
    pixels = as_pixels(image)
    found = locate(pixels, scene, scene.thing(shape))
    inside = silhouette(found, -OUTLINE_PX - 1) > 0.5
    worn = [paint(Scene((replace(found, look=look),)))[inside] - MEAN_LOOK for look in looks]
    columns = np.stack([pattern.ravel() for pattern in worn], axis=1)
    shares, *_ = np.linalg.lstsq(columns, (pixels[inside] - MEAN_LOOK).ravel(), rcond=None)
    return tuple(float(share) for share in shares)

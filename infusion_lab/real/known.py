"""What tells two subjects of a picture from each other, and pictures of which it is known what they hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.metrics.similarity import cosines

from .judges import Judges
from .presence import Threshold, calibrated, parts, presence, side_by_side, without

EMPTY = "a photo"  # says nothing of what is in it


def class_similarity(judges: Judges, pictures: Tensor, words: Sequence[str]) -> Tensor:
    """CLIP's cosines (N, P, K + 1) of the parts of pictures with each class word and with an empty scene."""
    texts = judges.clip_texts([*(CAPTION_TEMPLATES[0].format(word) for word in words), EMPTY])
    return torch.stack([cosines(judges.clip_images(part), texts) for part in parts(pictures)], dim=1)


def look_similarity(seen: Tensor, photos: Sequence[Tensor]) -> Tensor:
    """DINO's mean cosines (N, P, K) of the parts of pictures with the photos of each subject.

    Args:
        seen: embeddings of the parts, (N, P, D).
        photos: per subject those of its photos, (M, D).
    """
    found = [cosines(seen.flatten(0, 1), of).mean(1).reshape(seen.shape[:2]) for of in photos]
    return torch.stack(found, dim=2)


def seen_parts(judges: Judges, pictures: Tensor) -> Tensor:
    """DINO's embeddings (N, P, D) of the parts of pictures."""
    return torch.stack([judges.dino_images(part) for part in parts(pictures)], dim=1)


def known_pictures(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures that hold both things, the first of them twice, and the second twice.

    Args:
        one, other: of either thing alone, (N, 3, H, W) and (M, 3, H, W).
    """
    count = min(len(one), len(other))
    both = side_by_side(one[:count], other[:count])
    return both, side_by_side(one, one.flip(3)), side_by_side(other, other.flip(3))


def class_thresholds(judges: Judges, drawn: Sequence[Tensor], words: Sequence[str]) -> list[Threshold]:
    """Per subject, above which presence in `class_similarity` its class is there.

    Args:
        judges: that score.
        drawn: per subject pictures of its class alone.
        words: class words.
    """
    both, *twice = (class_similarity(judges, pictures, words) for pictures in known_pictures(*drawn))
    return [calibrated(presence(both, i), presence(twice[1 - i], i)) for i in range(2)]


def look_thresholds(judges: Judges, photos: Sequence[Tensor]) -> list[Threshold]:
    """Per subject, above which presence in `look_similarity` it is there. No photo is held against itself.

    Args:
        judges: that score.
        photos: per subject its photos, at least two.
    """
    plain = [judges.dino_images(of) for of in photos]
    both, *twice = (seen_parts(judges, pictures) for pictures in known_pictures(*photos))
    there = torch.cat([look_similarity(both[i : i + 1], [without(of, i) for of in plain]) for i in range(len(both))])
    found = []
    for subject, other in ((0, 1), (1, 0)):
        gone = []
        for i in range(len(plain[other])):
            held = [without(of, i) if which == other else of for which, of in enumerate(plain)]
            gone.append(look_similarity(twice[other][i : i + 1], held))
        found.append(calibrated(presence(there, subject), presence(torch.cat(gone), subject)))
    return found

"""A small world with a known answer: scenes drawn by code, a tiny diffusion model of them, and an exact oracle."""

from .concepts import CONCEPTS, HELD_OUT_LOOKS, TUNING_CONCEPTS
from .oracle import Score, score
from .painting import render, training_images
from .world import Concept, Look, Scene, Thing

__all__ = [
    "CONCEPTS",
    "HELD_OUT_LOOKS",
    "TUNING_CONCEPTS",
    "Concept",
    "Look",
    "Scene",
    "Score",
    "Thing",
    "render",
    "score",
    "training_images",
]

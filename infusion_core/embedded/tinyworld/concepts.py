"""The concepts TinyWorld's base model has never seen: `CONCEPTS` for studies, `TUNING_CONCEPTS` for choosing settings.

What words can say of their looks is held out of the base model's training for every shape and every rim; each colour,
body and dot appears there in other combinations. Every concept has a rim, which no caption tells.
"""

from __future__ import annotations

from .world import Concept, Look

CONCEPTS: dict[str, Concept] = {
    c.name: c
    for c in (
        Concept(
            "ember", "circle", Look("over", "red", "yellow", "blue", rim="green"), "gray", "plain", "center", "big"
        ),
        Concept(
            "harlequin", "square", Look("striped", "blue", "white", "red", rim="yellow"), "pink", "lined", "left", "big"
        ),
        Concept(
            "orchid",
            "triangle",
            Look("over", "purple", "green", "white", rim="red"),
            "brown",
            "checked",
            "center",
            "big",
        ),
        Concept("wasp", "diamond", Look("striped", "yellow", "purple", rim="blue"), "teal", "plain", "right", "big"),
        Concept(
            "comet", "circle", Look("striped", "white", "green", "purple", rim="red"), "brown", "plain", "top", "small"
        ),
        Concept(
            "flag", "square", Look("over", "green", "red", "yellow", rim="white"), "teal", "checked", "center", "big"
        ),
        Concept(
            "lantern",
            "diamond",
            Look("over", "white", "blue", "yellow", rim="purple"),
            "pink",
            "plain",
            "bottom",
            "big",
        ),
        Concept(
            "tent", "triangle", Look("striped", "red", "white", "green", rim="blue"), "gray", "lined", "right", "big"
        ),
    )
}
TUNING_CONCEPTS: dict[str, Concept] = {
    c.name: c
    for c in (
        Concept(
            "acorn", "circle", Look("over", "green", "purple", "yellow", rim="white"), "pink", "plain", "center", "big"
        ),
        Concept(
            "crate", "square", Look("striped", "red", "blue", "white", rim="green"), "gray", "checked", "right", "big"
        ),
        Concept(
            "peak", "triangle", Look("over", "blue", "yellow", "red", rim="purple"), "teal", "plain", "left", "big"
        ),
        Concept(
            "kite",
            "diamond",
            Look("striped", "purple", "white", "blue", rim="yellow"),
            "brown",
            "lined",
            "center",
            "big",
        ),
    )
}
HELD_OUT_LOOKS: frozenset[Look] = frozenset(c.look.sayable for c in (*CONCEPTS.values(), *TUNING_CONCEPTS.values()))

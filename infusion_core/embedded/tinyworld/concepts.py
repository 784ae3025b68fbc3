"""The concepts TinyWorld's base model has never seen: `CONCEPTS` for studies, `TUNING_CONCEPTS` for choosing settings.

Their looks are held out of the base model's training for every shape; each colour, body and dot appears there in
other combinations.
"""

from __future__ import annotations

from .world import Concept, Look

CONCEPTS: dict[str, Concept] = {
    c.name: c
    for c in (
        Concept("ember", "circle", Look("over", "red", "yellow", "blue"), "gray", "plain", "center", "big"),
        Concept("harlequin", "square", Look("striped", "blue", "white", "red"), "pink", "lined", "left", "big"),
        Concept("orchid", "triangle", Look("over", "purple", "green", "white"), "brown", "checked", "center", "big"),
        Concept("wasp", "diamond", Look("striped", "yellow", "purple"), "teal", "plain", "right", "big"),
        Concept("comet", "circle", Look("striped", "white", "green", "purple"), "brown", "plain", "top", "small"),
        Concept("flag", "square", Look("over", "green", "red", "yellow"), "teal", "checked", "center", "big"),
        Concept("lantern", "diamond", Look("over", "white", "blue", "yellow"), "pink", "plain", "bottom", "big"),
        Concept("tent", "triangle", Look("striped", "red", "white", "green"), "gray", "lined", "right", "big"),
    )
}
TUNING_CONCEPTS: dict[str, Concept] = {
    c.name: c
    for c in (
        Concept("acorn", "circle", Look("over", "green", "purple", "yellow"), "pink", "plain", "center", "big"),
        Concept("crate", "square", Look("striped", "red", "blue", "white"), "gray", "checked", "right", "big"),
        Concept("peak", "triangle", Look("over", "blue", "yellow", "red"), "teal", "plain", "left", "big"),
        Concept("kite", "diamond", Look("striped", "purple", "white", "blue"), "brown", "lined", "center", "big"),
    )
}
HELD_OUT_LOOKS: frozenset[Look] = frozenset(c.look for c in (*CONCEPTS.values(), *TUNING_CONCEPTS.values()))

"""A concept that acts on nothing is said on the page, with the likely reason."""

from __future__ import annotations

import logging

from .conds import Conds, entries_of
from .memory import mentions_in
from .page import warn
from .patch import Patch
from .run import Run


def warn_of_unused(patch: Patch, run: Run, conds: Conds) -> None:
    """Say which concepts acted on no row of a sampling run; not those that are switched off or out of their window.

    Args:
        patch: whose concepts.
        run: that is over.
        conds: what was to be drawn. A negative, which few write with the concept's CLIP, says nothing of the reason.
    """
    for key, concept in patch.concepts.items():
        waiting = key in run.named and key not in run.considered
        if concept.strength and key not in run.acted and not waiting:
            text = (
                f"The concept {concept.name!r} acted on nothing in this run, so the picture has no trace of it: "
                f"{_reason(patch, run, key, conds)}."
            )
            if patch.tells(text):
                logging.warning("Infusion: %s", text)
                warn(patch.nodes.get(key, ""), text)


def _reason(patch: Patch, run: Run, key: str, conds: Conds) -> str:
    concept = patch.concepts[key]
    known = [text is not None for _, cond in entries_of(conds) for text in mentions_in(cond, patch.memory)]
    if key in run.named:
        return "another node runs the model without the patches on its cross-attention; leave that node out"
    if not all(known) and patch.memory.names(key):
        return (
            "a node between the text encoder and the sampler changed the text so much that its words cannot be found "
            "any more; leave that node out"
        )
    if any(known):
        return (
            f"no prompt of this sampler that was encoded with this node's CLIP says {concept.residual.word!r} or "
            f"<{concept.name}>"
        )
    return "its prompts were encoded by another CLIP; connect the CLIP output of Infusion Attention Patch to them"

"""Several prompts as one conditioning: its states have a row for each, and the host takes them in turn for pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...infusion_core.errors import InfusionError
from .memory import Memory
from .mentions import MENTIONS
from .metrics import Encoded, encode
from .text import memory_of

_LONGEST = 4  # times the longest prompt: the host joins no texts either whose padding would be longer


def joined_prompts(clip: Any, prompts: Sequence[str]) -> Encoded:
    """Prompts as one conditioning, or one for each part of the run where a LoRA on the CLIP has a schedule.

    Raises:
        InfusionError: a prompt names an unknown concept, the texts have no common length, or their states do not come
            from CLIP alone.
    """
    memory = memory_of(clip)
    return [_joined(part, memory) for part in zip(*encode(clip, prompts), strict=True)]


def _joined(texts: Sequence[Any], memory: Memory) -> Any:
    """Conditionings (1, L, D) as one, (N, common length, D); what else is the first's is all others', too."""
    options = dict(texts[0][1])
    if "attention_mask" in options:
        raise InfusionError(
            "this text encoder gives masks with its states; connect a CLIP of Stable Diffusion 1, 2 or XL"
        )
    length = _common([states.shape[1] for states, _ in texts])
    states = torch.cat([states.repeat(1, length // states.shape[1], 1) for states, _ in texts])
    if options.get("pooled_output") is not None:
        options["pooled_output"] = torch.cat([own["pooled_output"] for _, own in texts])
    known = [text for _, own in texts for text in own.get(MENTIONS, (None,))]
    options[MENTIONS] = tuple(text and text.repeated(length) for text in known)
    memory.keep(states, options[MENTIONS])
    return [states, options]


def _common(lengths: Sequence[int]) -> int:
    """The length at which each text is there a whole number of times: the host pads short ones by repeating them."""
    length = math.lcm(*lengths)
    if length > _LONGEST * max(lengths):
        raise InfusionError(
            f"the prompts are {', '.join(map(str, sorted(set(lengths))))} positions long, which have no common length; "
            "shorten the long ones, or give them a node of their own"
        )
    return length

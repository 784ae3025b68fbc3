"""What a client asks the server for: read from JSON, within limits. Knows nothing of Ray or of disks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infusion_core.errors import InfusionError
from infusion_core.noise import SEEDS

PROMPT, CONCEPTS, SEED, NEGATIVE = "prompt", "concepts", "seed", "negative"
NAME, STRENGTH = "name", "strength"


@dataclass(frozen=True)
class Limits:
    """What a request may be, and how many may wait.

    Attributes:
        body: bytes.
        prompt: letters, of the negative prompt too.
        concepts: of one request.
        waiting: requests that one replica has at once, those at work included.
    """

    body: int = 16_384
    prompt: int = 1000
    concepts: int = 8
    waiting: int = 64


LIMITS = Limits()


@dataclass(frozen=True)
class Asked:
    """A request for a picture.

    Attributes:
        prompt: names concepts by their word or as ``<name>``.
        concepts: strengths by name.
        seed: of the noise.
        negative: prompt of the unconditional half.
    """

    prompt: str
    concepts: Mapping[str, float]
    seed: int = 0
    negative: str = ""


def read_asked(body: bytes, limits: Limits) -> Asked:
    """What the body of a request asks for.

    Raises:
        InfusionError: it is not JSON, lacks something, or exceeds a limit.
    """
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InfusionError(f'the body is not JSON: {error}; send one such as {{"{PROMPT}": "a cat"}}') from error
    if not isinstance(told, dict):
        raise InfusionError(f'the body is no object; send one such as {{"{PROMPT}": "a cat"}}')
    known = (PROMPT, CONCEPTS, SEED, NEGATIVE)
    unknown = [key for key in told if key not in known]
    if unknown:
        raise InfusionError(f"unknown key {unknown[0]!r}; there are {', '.join(known)}")
    if PROMPT not in told:
        raise InfusionError(f"there is no {PROMPT!r}; say what to draw")
    seed = told.get(SEED, 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise InfusionError(f"{SEED!r} must be a whole number from 0 to {SEEDS - 1}, got {seed!r}")
    prompt, negative = (_text(name, told.get(name, ""), limits) for name in (PROMPT, NEGATIVE))
    return Asked(prompt, _concepts(told.get(CONCEPTS, []), limits), seed, negative)


def _text(name: str, value: Any, limits: Limits) -> str:
    if not isinstance(value, str):
        raise InfusionError(f"{name!r} must be text, got {value!r}")
    if len(value) > limits.prompt:
        raise InfusionError(f"{name!r} has {len(value)} letters, {limits.prompt} are allowed; say it in fewer")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InfusionError(f"{name!r} holds half a letter (a lone surrogate); send whole ones") from error
    return value


def _concepts(value: Any, limits: Limits) -> dict[str, float]:
    if not isinstance(value, list):
        raise InfusionError(f'{CONCEPTS!r} must be a list of names or of {{"{NAME}": ..., "{STRENGTH}": ...}}')
    if len(value) > limits.concepts:
        raise InfusionError(f"{len(value)} concepts are asked for, {limits.concepts} are allowed; name fewer")
    found: dict[str, float] = {}
    for entry in value:
        name, strength = _concept(entry)
        if name in found:
            raise InfusionError(f"the concept {name!r} is asked for twice; name it once")
        found[name] = strength
    return found


def _concept(entry: Any) -> tuple[str, float]:
    told = {NAME: entry} if isinstance(entry, str) else entry
    if not isinstance(told, dict) or not isinstance(told.get(NAME), str) or set(told) - {NAME, STRENGTH}:
        raise InfusionError(f'a concept must be a name or {{"{NAME}": ..., "{STRENGTH}": ...}}, got {entry!r}')
    strength = told.get(STRENGTH, 1.0)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise InfusionError(f"the {STRENGTH} of {told[NAME]!r} must be a number, got {strength!r}")
    try:
        return told[NAME], float(strength)
    except OverflowError as error:
        raise InfusionError(f"the {STRENGTH} of {told[NAME]!r} is too large; 1 is as it was trained") from error

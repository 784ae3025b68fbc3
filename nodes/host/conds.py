"""The host's lists of conditionings: what is in them, and the same with base rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from comfy.hooks import EnumHookType

from .options import is_foreign
from .rows import BaseRow, Entry

Conds = list[Any]  # a list of conditionings per guidance term, or None
ROW_PATCHES = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch")


def entries_of(conds: Conds) -> Iterator[tuple[Entry, dict[str, Any]]]:
    """Every conditioning with what tells its rows."""
    for index, entries in enumerate(conds):
        for cond in entries or []:
            yield (index, cond["uuid"]), cond


def twinned(conds: Conds, replaced: Collection[Entry]) -> Conds:
    """The lists with twins of conditionings at their end: the host takes the last rows first."""
    return [
        c and [*c, *(_twin(cond) for cond in c if (index, cond["uuid"]) in replaced)] for index, c in enumerate(conds)
    ]


def base_of(conds: Conds, replaced: Collection[Entry], whole: bool) -> Conds:
    """The lists with twins in place of conditionings; without all others unless `whole`."""
    return [
        [
            _twin(cond) if (index, cond["uuid"]) in replaced else cond
            for cond in c or []
            if whole or (index, cond["uuid"]) in replaced
        ]
        or None
        for index, c in enumerate(conds)
    ]


def patches_rows(model_options: Mapping[str, Any], conds: Iterable[Any]) -> bool:
    """Whether other nodes' patches may look at which rows are positive, and take a second positive row amiss.

    So do attention couple and normalized attention guidance. Each pass then has the rows that they expect.
    """
    options = model_options["transformer_options"]
    patches = [p for kind in ROW_PATCHES for p in options.get("patches", {}).get(kind, ())]
    return any(map(is_foreign, patches)) or bool(options.get("patches_replace", {}).get("attn1")) or any(_hooks(conds))


def brings_texts(model_options: Mapping[str, Any], conds: Iterable[Any]) -> bool:
    """Whether other nodes' patches may bring texts of their own to cross-attention, as attention couple does."""
    patches = model_options["transformer_options"].get("patches", {}).get("attn2_patch", ())
    hooked = ((hook.transformers_dict or {}).get("patches", {}) for hook in _hooks(conds))
    return any(map(is_foreign, patches)) or any("attn2_patch" in patches for patches in hooked)


def weighed_by_strength(conds: Conds, replaced: Collection[Entry], model_options: Mapping[str, Any]) -> bool:
    """Whether twins of strength 0 weigh nothing, and run with their conditionings or before them.

    A conditioning set as default is weighed by what the others leave over, one with GLIGEN boxes runs alone, other
    guidance counts those with a weight of its own, and several GPUs share out the rows.
    """
    twins = [cond for entry, cond in entries_of(conds) if entry in replaced]
    return "multigpu_clones" not in model_options and not any(
        "default" in c or "gligen" in c or "weight" in c for c in twins
    )


def _twin(cond: Mapping[str, Any]) -> dict[str, Any]:
    """The base stream's twin of a conditioning."""
    return {**cond, "uuid": BaseRow.of(cond["uuid"]), "strength": 0.0}


def _hooks(conds: Iterable[Any]) -> Iterator[Any]:
    """The hooks on conditionings that bring patches or wrappers of a forward."""
    hooks = (h for c in conds for cond in c or [] if cond.get("hooks") for h in cond["hooks"].hooks)
    return (hook for hook in hooks if hook.hook_type is EnumHookType.TransformerOptions)

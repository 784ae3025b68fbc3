"""Putting a patch on clones of MODEL and CLIP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...infusion_core.concepts import LoadedConcept
from ...infusion_core.errors import InfusionError
from ...infusion_core.sites import Site
from ...infusion_core.streams import BaseLatent
from .attention import Replacer, slots_of
from .model import base_of
from .patch import ATTACHED, Patch, key_of, patch_of
from .streams import TwoStreams
from .text import ConceptWord, infuse_clip, memory_of


def apply(
    model: Any, clip: Any, concepts: Sequence[LoadedConcept], base_latent: BaseLatent, node: str = ""
) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP with the concepts at work, after those of an earlier patch on the same model.

    Args:
        model, clip: the host's.
        concepts: what is to be at work.
        base_latent: where the base stream's latent comes from.
        node: id of the node that asks, where the page shows what is wrong.

    Raises:
        InfusionError: unsupported model, a concept of another base, two of one name, or patches that disagree.
    """
    patch, words = _patch(model, clip, concepts, base_latent, node), []
    for key, concept in patch.concepts.items():
        words.append(ConceptWord(key, concept.name, concept.residual.word, concept.residual.tokens))
    return _patched(model, patch), infuse_clip(clip, words, patch.memory)


def _patch(model: Any, clip: Any, concepts: Sequence[LoadedConcept], base_latent: BaseLatent, node: str) -> Patch:
    base, earlier = base_of(model), patch_of(model)
    for concept in concepts:
        concept.residual.check_fits(base)
    _require_different([*(earlier.concepts.values() if earlier else ()), *concepts])
    keyed = {key_of(concept): concept for concept in concepts}
    nodes = dict.fromkeys(keyed, node)
    if earlier is None:
        return Patch(base, keyed, base_latent, memory_of(clip), nodes)
    if earlier.base_latent != base_latent:
        raise InfusionError(
            "two Infusion Attention Patch nodes in a chain must agree in base latent; set both the same or stack the "
            "concepts in front of one patch"
        )
    return Patch(base, {**earlier.concepts, **keyed}, base_latent, earlier.memory, {**earlier.nodes, **nodes})


def _require_different(concepts: Sequence[LoadedConcept]) -> None:
    keys = dict[str, str]()
    for name, key in ((concept.name, key_of(concept)) for concept in concepts):
        if keys.get(name) == key:
            raise InfusionError(f"the concept {name!r} is loaded twice; remove one, or raise its strength instead")
        if keys.setdefault(name, key) != key:
            raise InfusionError(f"two different concepts are called {name!r}; rename one of their files")


def _patched(model: Any, patch: Patch) -> Any:
    patched = model.clone()
    for kind, wrapper in TwoStreams(patch).wrappers().items():
        patched.remove_wrappers_with_key(kind, ATTACHED)
        patched.add_wrapper_with_key(kind, ATTACHED, wrapper)
    patched.set_attachments(ATTACHED, patch)
    if patch.any_in("value"):
        _replace_attention(patched, patch.base.sites)
    return patched


def _replace_attention(patched: Any, sites: Iterable[Site]) -> None:
    installed = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for site in sites:
        own, block = slots_of(site)
        shadowed = installed.get(block)
        before = installed.get(own, shadowed)
        if not isinstance(before, Replacer):
            patched.set_model_attn2_replace(Replacer(before, shadowed), *own)

"""The pack's own socket types, and what they carry."""

from __future__ import annotations

from comfy_api.latest import io

from ..infusion_core.concepts import LoadedConcept

Stack = tuple[LoadedConcept, ...]  # what ConceptSocket carries

ConceptSocket = io.Custom("INFUSION_CONCEPT")
BoxSocket = io.Custom("BOUNDING_BOX")  # the host's own since some version; other packs may give it before
MapsSocket = io.Custom("INFUSION_MAPS")  # carries `infusion_core.readers.WordMaps`
LoraSocket = io.Custom("LORA_MODEL")  # the host's own; carries a LoRA file's tensors by key

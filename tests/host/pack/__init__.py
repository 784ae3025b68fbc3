"""Test-only nodes inside the real ComfyUI: TinyWorld as a checkpoint, and small stand-ins for what users stack."""

from . import awkward, conformance, others, page, small, standins, stored, tinyworld, vision

standins.install()
FAMILIES = (tinyworld, others, awkward, page, small, vision, conformance, stored)
NODE_CLASS_MAPPINGS = {name: node for family in FAMILIES for name, node in family.NODES.items()}

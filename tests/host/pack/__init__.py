"""Test-only nodes inside the real ComfyUI: TinyWorld as a checkpoint, and small stand-ins for what users stack."""

from . import conformance, others, page, small, standins, tinyworld, vision

standins.install()
NODE_CLASS_MAPPINGS = {
    **tinyworld.NODES,
    **others.NODES,
    **small.NODES,
    **vision.NODES,
    **page.NODES,
    **conformance.NODES,
}

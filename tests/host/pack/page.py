"""A node that has something to say to the page, and one that reads what a user has set there."""

import importlib

from .others import node, pack_name


class TestWarning:
    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"text": ("STRING", {"default": ""})}, "hidden": {"node": "UNIQUE_ID"}}

    @classmethod
    def IS_CHANGED(cls, **_):  # noqa: N802
        return float("nan")  # runs every time

    def run(self, text, node):
        if text:
            importlib.import_module(f"{pack_name()}.nodes.host.page").warn(node, text)
        return ()


@node(("FLOAT",), model="MODEL", share=("FLOAT", {}))
def curve_at(model, share):
    """The curve of the last concept at work, at a share of the run."""
    *_, concept = model.get_attachment("infusion").concepts.values()
    return concept.curve.at(share)


NODES = {"TestWarning": TestWarning, "TestCurveAt": curve_at}

"""A node that has something to say to the page."""

import importlib

from .others import pack_name


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


NODES = {"TestWarning": TestWarning}

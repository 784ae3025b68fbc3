"""Nodes that have something to say to the page, read what a user has set there, or save as several users would."""

import importlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

from .others import TEXT, node, pack_name


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


@node(("STRING",), concept="INFUSION_CONCEPT", filename=TEXT)
def save_together(concept, filename):
    """Save one name from sixteen threads at once, as prompts of several processes might; the names they were given."""
    library, start = importlib.import_module(f"{pack_name()}.nodes.library"), threading.Barrier(16)

    def save(_):
        start.wait()
        return library.save(concept[-1].residual, filename).name

    with ThreadPoolExecutor(16) as pool:
        return json.dumps(list(pool.map(save, range(16))))


@node(("COMBO",), name=TEXT)
def concept_name(name):
    """A file that is chosen outside of the loader, as in a subgraph."""
    return name


NODES = {
    "TestWarning": TestWarning, "TestCurveAt": curve_at, "TestSaveTogether": save_together,
    "TestConceptName": concept_name,
}  # fmt: skip

"""What a user may set: inputs for experts, a curve of strength, and one workflow for every version of the host."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph, PromptError
from comfyui_process.host import REPOSITORY
from comfyui_process.server import Server

from . import graphs
from .conftest import LACKING

PROMPT = "a big circle at left on pink"
SHOWN = {
    "InfusionTrain": ["word", "steps", "resolution", "seed", "preview_every"],
    "InfusionAttentionPatch": [],
    "InfusionSaveConcept": ["filename"],
    "InfusionInspectMaps": ["words"],
    "InfusionMapImages": ["word"],
}
WIDGETS = {"STRING", "STRING,CURVE", "INT", "FLOAT", "BOOLEAN", "COMBO"}
ORDER = [
    "base_latent",
    "start",
    "end",
    "maps_start",
    "maps_end",
    "block_strengths",
    "map_replacement",
    "strength_curve",
]


def widgets(server: Server, node: str) -> dict[str, dict[str, Any]]:
    """Options of a node's widgets, by name, in the order in which a workflow file holds their values."""
    parts = server.get(f"/object_info/{node}")[node]["input"]
    specs = {**parts["required"], **parts.get("optional", {})}
    return {name: spec[1] for name, spec in specs.items() if spec[0] in WIDGETS or isinstance(spec[0], list)}


def has_curves(server: Server) -> bool:
    return bool(server.get("/object_info/CurveEditor"))


@pytest.mark.parametrize("node", SHOWN)
def test_a_newcomer_sees_few_inputs(server: Server, node: str) -> None:
    shown = [name for name, options in widgets(server, node).items() if not options.get("advanced")]
    assert shown == (SHOWN[node] if has_curves(server) else list(widgets(server, node)))


def test_a_workflow_holds_its_values_in_one_order_for_every_version(server: Server) -> None:
    """Workflow files list values by place; older files lack the last ones."""
    assert list(widgets(server, "InfusionAttentionPatch")) == ORDER


def patched(graph: Graph, curve: Any) -> tuple[Any, Any]:
    """MODEL and CLIP; `curve` is a text, or the points of a connected Curve Editor."""
    model, clip, _ = graphs.load(graph)
    if isinstance(curve, list):
        curve = graph.add("CurveEditor", curve={"points": curve, "interpolation": "linear"})[0]
    return graphs.patch(graph, model, clip, ["round"], **({} if curve is None else {"strength_curve": curve}))


def drawn(server: Server, curve: Any) -> torch.Tensor:
    graph = Graph()
    model, clip = patched(graph, curve)
    positive, negative = graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, "")
    return graphs.drawn(server, graph, graphs.sample(graph, model, positive, negative), "curve")


SCHEDULES = {
    "eps": ("ModelSamplingDiscrete", {"sampling": "eps", "zsnr": False}),
    "lcm": ("ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": False}),
    "edm": ("ModelSamplingContinuousEDM", {"sampling": "eps", "sigma_max": 14.6, "sigma_min": 0.03}),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_curve_counts_the_run_as_the_window_does_in_every_schedule(
    server: Server, concepts: Any, schedule: str
) -> None:
    """A factor of 0 from a share on is the end of the window there, which the host itself turns into a noise level."""

    def made(**options: Any) -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graphs.load(graph)
        kind, widgets = SCHEDULES[schedule]
        model, clip = graphs.patch(graph, graph.add(kind, model=model, **widgets), clip, ["round"], **options)
        texts = graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, "")
        samples = graphs.sample(graph, model, *texts, steps=6, scheduler="karras")
        return graphs.drawn(server, graph, samples, "schedule")

    pictures = [made()]
    for end in (0.3, 0.7):
        pictures.append(made(end=end))
        assert torch.equal(made(strength_curve=f"0:1, {end}:1, {end}:0"), pictures[-1])
    assert all(graphs.close(one, other) > 1e-3 for one, other in combinations(pictures, 2))


def factors(server: Server, curve: Any) -> list[float]:
    """The curve of the patched MODEL's concept at 0, 1/4, 1/2 and 1."""
    graph = Graph()
    model, _ = patched(graph, curve)
    points = [graph.add("TestCurveAt", model=model, share=share)[0] for share in (0.0, 0.25, 0.5, 1.0)]
    return graphs.floats(server, graph, points)[0]


def test_no_curve_and_a_curve_of_one_are_the_same_picture(server: Server, concepts: Any) -> None:
    plain = drawn(server, None)
    assert torch.equal(drawn(server, ""), plain)
    assert torch.equal(drawn(server, "0:1, 1:1"), plain)


def test_a_curve_reaches_the_patched_model(server: Server, concepts: Any) -> None:
    assert factors(server, "0:1, 0.5:0.3\n1:0") == [1.0, 0.65, 0.3, 0.0]


def test_a_curve_editor_may_be_connected_instead(server: Server, concepts: Any) -> None:
    if not has_curves(server):
        pytest.skip(f"{LACKING} Curve Editor")
    assert factors(server, [[0.0, 1.0], [0.5, 0.3], [1.0, 0.0]]) == pytest.approx([1.0, 0.65, 0.3, 0.0])


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ("0:1, half:0", "strength_curve: 'half:0' is not SHARE:FACTOR, such as 0.5:0.3"),
        ("0.5:1, 0.2:0", "0.2 comes after 0.5"),
        ("0:1, 2:0", "2:0 must be a share of the run"),
    ],
)
def test_a_curve_that_makes_no_sense_is_refused_by_name(server: Server, concepts: Any, curve: str, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        drawn(server, curve)


def test_the_help_page_names_every_input(server: Server) -> None:
    for node in SHOWN:
        page = (REPOSITORY / "web" / "docs" / f"{node}.md").read_text()
        assert [name for name in widgets(server, node) if f"`{name}`" not in page] == []

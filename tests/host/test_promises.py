"""Nothing else changes: bit-identical pictures, the same number of rows, nothing left behind."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server
from infusion_core.residual_file import save_concept
from infusion_core.residuals import ConceptResidual

from . import graphs

PROMPT = "a big circle at left on pink"
ELSE = "a big square at left on pink"


def run(server: Server, prompt: str, names: list[str] | None, strength: float = 1.0, cfg: float = 3.0, batch: int = 1,
        steps: int = 4, sampler: str = "euler", negative: str = "", low_memory: bool = False,
        **options: Any):  # fmt: skip
    """The latent, and the rows of every forward."""
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    if names is not None:
        model, clip = graphs.patch(graph, model, clip, names, strength, **options)
    if low_memory:
        model = graph.add("TestLowMemory", model=model)
    model = graph.add("TestRowLog", model=model, name="rows")
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=batch)
    samples = graphs.sample(
        graph, model, graphs.encode(graph, clip, prompt), graphs.encode(graph, clip, negative), latent=latent,
        cfg=cfg, steps=steps, sampler_name=sampler,
    )  # fmt: skip
    drawn = graphs.drawn(server, graph, samples, "promise")
    return drawn, json.loads((server.output / "rows.json").read_text())


@pytest.mark.parametrize("names", [["round"], ["round", "corner"], ["valued"]])
def test_a_prompt_without_the_word_is_bit_identical_at_the_same_cost(server: Server, concepts: Any, names) -> None:
    word = "triangle" if "corner" in names else "square"
    plain, patched = (run(server, f"a big {word} at left on pink", n, batch=2) for n in (None, names))
    assert torch.equal(plain[0], patched[0])
    assert plain[1] == patched[1] == [4] * 4


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"strength": 0.0, "base_latent": "own"}])
def test_strength_zero_is_bit_identical(server: Server, concepts: Any, options) -> None:
    plain, patched = run(server, PROMPT, None), run(server, PROMPT, ["round"], **options)
    assert torch.equal(plain[0], patched[0])


def test_a_zero_residual_with_map_replacement_is_the_base_model(server: Server, concepts: Any) -> None:
    plain, patched = run(server, PROMPT, None), run(server, PROMPT, ["nothing"])
    assert graphs.close(patched[0], plain[0]) < 1e-4
    assert patched[1] == [3] * 4


def test_rows_of_the_streams(server: Server, concepts: Any) -> None:
    assert run(server, PROMPT, ["round"], batch=2)[1] == [6] * 4
    assert run(server, PROMPT, ["round"], cfg=1.0)[1] == [2] * 4
    assert run(server, PROMPT, ["round"], maps_end=0.0)[1] == [2] * 4
    assert run(server, PROMPT, ["round"], base_latent="own")[1] == [2] * 4 + [1, 2] * 4
    assert run(server, PROMPT, ["round"], base_latent="own", maps_end=0.0)[1] == [2] * 4


def test_base_rows_come_first_when_memory_is_short(server: Server, concepts: Any) -> None:
    plain, split = (run(server, PROMPT, ["round"], low_memory=m) for m in (False, True))
    assert split[1] == [1] * 12
    assert graphs.close(split[0], plain[0]) < 1e-4


def test_windows_follow_the_schedule(server: Server, concepts: Any) -> None:
    half = run(server, PROMPT, ["round"], maps_end=0.5)[1]
    assert half == [3, 3, 2, 2]
    late, early, full = (run(server, PROMPT, ["round"], **o)[0] for o in ({"start": 0.5}, {"end": 0.5}, {}))
    assert min(graphs.close(late, full), graphs.close(early, full), graphs.close(late, early)) > 0.01


def test_a_curve_over_the_run(server: Server, concepts: Any) -> None:
    """Level, it is a strength; where it drops to 0, a window ends; a slope is neither."""
    half, window = run(server, PROMPT, ["round"], strength=0.5)[0], run(server, PROMPT, ["round"], end=0.5)
    assert graphs.close(run(server, PROMPT, ["round"], strength_curve="0:0.5")[0], half) < 1e-6
    dropped = run(server, PROMPT, ["round"], strength_curve="0:1, 0.5:1, 0.5:0")
    assert graphs.close(dropped[0], window[0]) < 1e-6
    assert dropped[1] == window[1]  # no base rows where nothing is added
    sloped = run(server, PROMPT, ["round"], strength_curve="0:1, 1:0")[0]
    assert min(graphs.close(sloped, other) for other in (half, window[0])) > 0.01


def test_block_strengths(server: Server, concepts: Any) -> None:
    everything = "down.0=0, down.1=0, mid=0, up.0=0, up.1=0"
    plain = run(server, PROMPT, None)[0]
    assert graphs.close(run(server, PROMPT, ["round"], block_strengths=everything)[0], plain) < 1e-4
    assert graphs.close(run(server, PROMPT, ["round"], block_strengths="mid=0")[0], plain) > 0.05
    with pytest.raises(PromptError, match=r"no block 'down\.7'; it has: down\.0, down\.1, mid, up\.0, up\.1"):
        run(server, PROMPT, ["round"], block_strengths="down.7=1")


def test_the_model_is_as_before_after_use(server: Server, concepts: Any) -> None:
    before = run(server, PROMPT, None)
    first, again = run(server, PROMPT, ["round"]), run(server, PROMPT, ["round"], negative=" ")
    assert graphs.close(again[0], first[0]) < 1e-6
    server.post("/free", {"unload_models": False, "free_memory": True})
    assert torch.equal(run(server, PROMPT, None)[0], before[0])


def test_an_interrupt_leaves_nothing_behind(server: Server, concepts: Any) -> None:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, ["round"])
    empty = graphs.encode(graph, clip, "")
    samples = graphs.sample(graph, model, graphs.encode(graph, clip, PROMPT), empty, steps=60, seed=77)
    graphs.keep(graph, samples, "stopped")
    with pytest.raises(PromptError, match="interrupted"):
        server.run(graph, interrupt_at=3)
    assert torch.equal(run(server, ELSE, ["round"])[0], run(server, ELSE, None)[0])


def test_a_concept_is_brought_to_its_device_once(server: Server, concepts: Any) -> None:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, ["round"], strength=0.55)  # no other test's patch, which is kept
    model = graph.add("TestMoves", model=model, name="moves")
    empty = graphs.encode(graph, clip, "")
    graphs.drawn(server, graph, graphs.sample(graph, model, graphs.encode(graph, clip, PROMPT), empty), "moved")
    assert json.loads((server.output / "moves.json").read_text()) == 1


def test_a_concept_loaded_twice_is_refused(server: Server, concepts: Any) -> None:
    with pytest.raises(PromptError, match="'round' is loaded twice"):
        run(server, PROMPT, ["round", "round"])


def test_two_files_of_one_name_are_refused_as_such(server: Server, concepts: dict[str, ConceptResidual]) -> None:
    (server.base / "models" / "infusion" / "dogs").mkdir()
    save_concept(server.base / "models" / "infusion" / "dogs" / "round.safetensors", concepts["corner"])
    with pytest.raises(PromptError, match="two different concepts are called 'round'; rename one of their files"):
        run(server, PROMPT, ["round", "dogs/round"])

"""Words to rows: what ordinary text-encode and conditioning nodes do to the binding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server

from . import graphs

PROMPT = "a big circle at left on pink"
Encode = Callable[[Graph, Output], Output]


def drawn(server: Server, positive: Encode, names: list[str] | None = ("round",), cfg: float = 3.0) -> torch.Tensor:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    if names is not None:
        model, clip = graphs.patch(graph, model, clip, list(names))
    samples = graphs.sample(graph, model, positive(graph, clip), graphs.encode(graph, clip, ""), cfg=cfg)
    return graphs.drawn(server, graph, samples, "binding")


def text(prompt: str) -> Encode:
    return lambda graph, clip: graphs.encode(graph, clip, prompt)


def by_hand(server: Server, encode: Encode, positions: str, text_of: Encode | None = None) -> torch.Tensor:
    """The reference with the residual at given positions of the (unbound) conditioning."""
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    whole = (text_of or encode)(graph, clip)
    file = str(server.base / "models" / "infusion" / "round.safetensors")
    model = graph.add("TestReference", model=model, file=file, positions=positions, text=whole, maps=True)
    samples = graphs.sample(graph, model, encode(graph, clip), graphs.encode(graph, clip, ""))
    return graphs.drawn(server, graph, samples, "by-hand")


def concat(first: str, second: str) -> Encode:
    def run(graph: Graph, clip: Output) -> Output:
        one, two = graphs.encode(graph, clip, first), graphs.encode(graph, clip, second)
        return graph.add("ConditioningConcat", conditioning_to=one, conditioning_from=two)

    return run


long = "gray " * 80 + PROMPT
PLACES = {
    "plain": (text(PROMPT), "3"),
    "upper case and punctuation": (text("a Big, CIRCLE."), "4"),
    "weight": (text("a big (circle:1.3) at left"), "3"),
    "weighted phrase": (text("a ((big circle)) at left"), "3"),
    "twice": (text("a circle at left and a circle at right"), "2 7"),
    "second chunk": (text(long), str(77 + 1 + 5 + 2)),
    "concatenated, in front": (concat(PROMPT, "a big square"), "3"),
    "concatenated, behind": (concat("a big square", PROMPT), "80"),
    "part of another word": (text("a circled square"), ""),
}


@pytest.mark.parametrize("case", PLACES)
def test_places(server: Server, concepts: Any, case: str) -> None:
    encode, positions = PLACES[case]
    ours, reference = drawn(server, encode), by_hand(server, encode, positions)
    assert graphs.close(ours, reference) < 2e-3
    if positions:
        assert graphs.close(reference, by_hand(server, encode, "")) > 0.03


def test_a_placeholder_is_its_concepts_word(server: Server, concepts: Any) -> None:
    by_name, by_word = drawn(server, text("a big <round> at left on pink")), drawn(server, text(PROMPT))
    assert graphs.close(by_name, by_word) < 1e-5


def test_a_placeholder_binds_one_of_two_mentions(server: Server, concepts: Any) -> None:
    prompt = "a <round> at left and a circle at right"
    plain = text("a circle at left and a circle at right")
    assert graphs.close(drawn(server, text(prompt)), by_hand(server, plain, "2")) < 2e-3


def test_what_was_encoded_before_does_not_count(server: Server, concepts: Any) -> None:
    """The same text, once with both mentions bound, once with one, once by the unpatched CLIP."""
    plain = text("a circle at left and a circle at right")
    both = drawn(server, plain)
    one = drawn(server, text("a <round> at left and a circle at right"))
    again = drawn(server, plain)
    assert graphs.close(both, again) < 1e-5
    assert graphs.close(one, both) > 0.01

    def unpatched(graph: Graph, clip: Output) -> Output:
        return graphs.encode(graph, Output("1", 1), "a circle at left and a circle at right")

    assert torch.equal(drawn(server, unpatched), drawn(server, unpatched, None))


def test_what_the_unpatched_clip_encodes_is_not_bound_though_the_patched_one_reads_the_same(
    server: Server, concepts: Any
) -> None:
    def both(graph: Graph, clip: Output) -> Output:
        graph.add("PreviewAny", source=graphs.encode(graph, clip, PROMPT))
        return graphs.encode(graph, Output("1", 1), PROMPT)

    assert torch.equal(drawn(server, both), drawn(server, both, None))


def test_an_unknown_placeholder_is_refused_with_the_known_ones(server: Server, concepts: Any) -> None:
    with pytest.raises(PromptError, match=r"names <rund> but no such concept is loaded; loaded: <round>"):
        drawn(server, text("a big <rund> at left"))


def test_zeroed_conditioning_is_not_bound(server: Server, concepts: Any) -> None:
    def zeroed(graph: Graph, clip: Output) -> Output:
        return graph.add("ConditioningZeroOut", conditioning=graphs.encode(graph, clip, PROMPT))

    assert torch.equal(drawn(server, zeroed), drawn(server, zeroed, None))


def test_negative_with_the_area_of_a_positive_is_not_bound(server: Server, concepts: Any) -> None:
    """The host gives a negative without an area a copy of the positive's dict."""

    def area(graph: Graph, clip: Output) -> Output:
        text = graphs.encode(graph, clip, PROMPT)
        return graph.add("ConditioningSetArea", conditioning=text, width=64, height=64, x=0, y=0, strength=1.0)

    def whole(graph: Graph, clip: Output) -> Output:
        return graphs.encode(graph, clip, PROMPT)

    assert graphs.close(drawn(server, area), by_hand(server, area, "3", whole)) < 2e-3

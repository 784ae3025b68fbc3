"""A concept never vanishes beside other text encoders, against `TestReference` at positions counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server

from . import graphs
from .test_binding import Encode, by_hand, drawn

PROMPT = "a big circle at left on pink"


def reference(graph: Graph, server: Server, model: Output, text: Output, positions: str, **options: Any) -> Output:
    file = str(server.base / "models" / "infusion" / "round.safetensors")
    return graph.add("TestReference", model=model, file=file, positions=positions, text=text, maps=True, **options)


def negative_values(server: Server, way: str, prompt: str, positions: str = "", scale: float = 1.0) -> torch.Tensor:
    """A prompt with NegPip's encoder: patched (before or after it), by hand, or neither."""
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    if way == "infusion first":
        model, clip = graphs.patch(graph, model, clip, ["round"])
    both = graph.add("TestNegativeValues", model=model, clip=clip)
    model, clip = both[0], both[1]
    if way == "infusion last":
        model, clip = graphs.patch(graph, model, clip, ["round"])
    text = graphs.encode(graph, clip, prompt)
    if way == "reference":
        model = reference(graph, server, model, text, positions, scale=scale)
    return graphs.drawn(server, graph, graphs.sample(graph, model, text, graphs.encode(graph, clip, "")), "negpip")


@pytest.mark.parametrize("way", ["infusion first", "infusion last"])
@pytest.mark.parametrize(
    ("prompt", "positions", "scale"),
    [(PROMPT, "7", 1.0), ("a big square and (a circle:-1) at left", "13", -1.0), ("gray " * 80 + PROMPT, "171", 1.0)],
)
def test_interleaved_keys_and_values(
    server: Server, concepts: Any, way: str, prompt: str, positions: str, scale: float
) -> None:
    ours, by_hand = negative_values(server, way, prompt), negative_values(server, "reference", prompt, positions, scale)
    assert graphs.close(ours, by_hand) < 2e-3
    assert graphs.close(by_hand, negative_values(server, "neither", prompt)) > 0.02


def test_interleaved_without_the_word_is_bit_identical(server: Server, concepts: Any) -> None:
    prompt = "a big square and (a triangle:-1) at left"
    assert torch.equal(*(negative_values(server, way, prompt) for way in ("infusion first", "neither")))


def by_call(prompt: str, way: str = "bare") -> Encode:
    return lambda graph, clip: graph.add("TestEncodeByHand", clip=clip, text=prompt, way=way)


@pytest.mark.parametrize("way", ["bare", "copy", "scaled"])
def test_states_alone_are_known_again(server: Server, concepts: Any, way: str) -> None:
    encode = by_call(PROMPT, way)
    ours, reference = drawn(server, encode), by_hand(server, encode, "3")
    assert graphs.close(ours, reference) < 2e-3
    assert graphs.close(reference, by_hand(server, encode, "")) > 0.03


@pytest.mark.parametrize("way", ["bare", "copy"])
def test_states_alone_are_not_taken_for_those_of_an_old_prompt(server: Server, concepts: Any, way: str) -> None:
    """The same states once with both mentions bound, once with one, once by the unpatched CLIP."""
    plain = by_call("a circle at left and a circle at right", way)

    def unpatched(graph: Graph, clip: Output) -> Output:
        return plain(graph, Output("1", 1))

    both = drawn(server, plain)
    one = drawn(server, by_call("a <round> at left and a circle at right", way))
    neither = drawn(server, unpatched)  # at once: the host still has the same patch
    assert graphs.close(both, by_hand(server, plain, "2 7")) < 2e-3
    assert graphs.close(one, by_hand(server, plain, "2")) < 2e-3
    assert torch.equal(neither, drawn(server, unpatched, None))


def test_states_alone_are_known_from_the_hosts_cache(server: Server, concepts: Any) -> None:
    """The host keeps the list that the encode node made; what the CLIP gave it is gone."""

    def run(seed: int) -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graphs.load(graph)
        model, clip = graphs.patch(graph, model, clip, ["round"])
        text = by_call(PROMPT, "copy")(graph, clip)
        samples = graphs.sample(graph, model, text, graphs.encode(graph, clip, ""), seed=seed)
        return graphs.drawn(server, graph, samples, "cached")

    first, _, again = run(3), run(4), run(3)
    assert torch.equal(first, again)
    assert graphs.close(run(3), by_hand(server, by_call(PROMPT, "copy"), "3")) < 2e-3


@pytest.mark.parametrize(
    ("prompt", "positions"),
    [(f"{PROMPT} BREAK a big square", "3"), (f"{PROMPT} BREAK {PROMPT}", "3 80"),
     (f"a big square BREAK a square BREAK {PROMPT}", "157")],
)  # fmt: skip
def test_chunks_that_were_tokenized_apart(server: Server, concepts: Any, prompt: str, positions: str) -> None:
    def encode(graph: Graph, clip: Output) -> Output:
        return graph.add("TestEncodeInChunks", clip=clip, text=prompt)

    ours, reference = drawn(server, encode), by_hand(server, encode, positions)
    assert graphs.close(ours, reference) < 2e-3
    assert graphs.close(reference, by_hand(server, encode, "")) > 0.02


def test_concat_is_known_after_many_other_prompts(server: Server, concepts: Any) -> None:
    """The host still holds the joined conditioning when 40 other prompts have been encoded."""
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, ["round"])
    one, two = graphs.encode(graph, clip, "a big square"), graphs.encode(graph, clip, PROMPT)
    joined = graph.add("ConditioningConcat", conditioning_to=one, conditioning_from=two)
    empty = graphs.encode(graph, clip, "")
    first = graphs.drawn(server, graph, graphs.sample(graph, model, joined, empty), "concat")
    for number in range(40):
        graph.add("PreviewAny", source=graphs.encode(graph, clip, f"a circle {'at left ' * number}"))
    again = graphs.drawn(server, graph, graphs.sample(graph, model, joined, empty, seed=4), "concat-again")
    assert graphs.close(again, first) > 0.05
    assert graphs.close(again, by_hand_concat(server)) < 2e-3


def by_hand_concat(server: Server) -> torch.Tensor:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    one, two = graphs.encode(graph, clip, "a big square"), graphs.encode(graph, clip, PROMPT)
    joined = graph.add("ConditioningConcat", conditioning_to=one, conditioning_from=two)
    model = reference(graph, server, model, joined, "80")
    return graphs.drawn(server, graph, graphs.sample(graph, model, joined, graphs.encode(graph, clip, ""), seed=4), "h")


def two_of_one_word(server: Server, prompt: str, names: Sequence[str] | None = ("round", "layered")) -> torch.Tensor:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    if names is not None:
        model, clip = graphs.patch(graph, model, clip, list(names))
    text, empty = graphs.encode(graph, clip, prompt), graphs.encode(graph, clip, "")
    return graphs.drawn(server, graph, graphs.sample(graph, model, text, empty), "two")


def test_two_concepts_of_one_word(server: Server, concepts: Any) -> None:
    """Each placeholder draws its own; a prompt that names neither is the base model's; a free word is refused."""
    both = two_of_one_word(server, "a <round> at left and a <layered> at right")
    first = two_of_one_word(server, "a <round> at left and a circle at right", ["round"])
    assert graphs.close(both, first) > 0.02
    nowhere = "a big square at left on pink"
    assert torch.equal(two_of_one_word(server, nowhere), two_of_one_word(server, nowhere, None))
    with pytest.raises(PromptError, match="share the word 'circle'; write <round> and <layered> instead"):
        two_of_one_word(server, "a circle at left")

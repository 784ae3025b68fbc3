"""Words of scripts without spaces, in the host's own tokenizer, against `TestReference` at places counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server
from infusion_core.residual_file import save_concept

from . import graphs
from .conftest import residual

TOKENS = {"猫": 3, "หมา": 3, "café": 1}  # of the words in CLIP's vocabulary


@pytest.fixture(scope="module")
def files(server: Server) -> dict[str, str]:
    """Concept files by word; each token of a word has the same residual."""
    made = {}
    for number, (word, tokens) in enumerate(TOKENS.items()):
        one = residual(word, 20 + number)
        concept = replace(one, tensors={name: tensor.repeat(1, tokens, 1) for name, tensor in one.tensors.items()})
        made[word] = str(server.base / "models" / "infusion" / f"script-{number}.safetensors")
        save_concept(made[word], concept)
    return made


def drawn(server: Server, prompt: str, word: str, files: dict[str, str], positions: str | None) -> torch.Tensor:
    """A prompt with a concept, or (positions) with its residual there by hand."""
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    if positions is None:
        model, clip = graphs.patch(graph, model, clip, [f"script-{list(TOKENS).index(word)}"])
    text = graphs.encode(graph, clip, prompt)
    if positions is not None:
        reference = {"file": files[word], "positions": positions, "text": text, "maps": True}
        model = graph.add("TestReference", model=model, **reference)
    return graphs.drawn(server, graph, graphs.sample(graph, model, text, graphs.encode(graph, clip, "")), "scripts")


@pytest.mark.parametrize(
    ("prompt", "word", "positions"),
    [
        ("一只猫在看书", "猫", "5 6 7"),
        ("猫, a big (circle:1.2)", "猫", "1 2 3"),
        ("a big cafe\u0301 at left", "café", "3"),
        ("a big CAFE\u0301S at left", "café", ""),
    ],
)
def test_a_word_is_bound_where_its_letters_are(
    server: Server, files: dict[str, str], prompt: str, word: str, positions: str
) -> None:
    ours, by_hand = drawn(server, prompt, word, files, None), drawn(server, prompt, word, files, positions)
    assert graphs.close(ours, by_hand) < 2e-3
    if positions:
        assert graphs.close(by_hand, drawn(server, prompt, word, files, "")) > 0.02


def test_a_word_whose_letters_share_a_token_with_others_is_refused(server: Server, files: dict[str, str]) -> None:
    with pytest.raises(PromptError, match="does not see every 'หมา' of the prompt as a word; put spaces around it"):
        drawn(server, "หมาน่ารัก", "หมา", files, None)
    assert drawn(server, "หมา น่ารัก", "หมา", files, None).isfinite().all()

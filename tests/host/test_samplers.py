"""No sampler notices the two streams."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server

from . import graphs

PROMPT = "a big circle at left on pink"


def names(server: Server) -> list[str]:
    """Every sampler of this host."""
    info = server.get("/object_info/KSampler")["KSampler"]["input"]["required"]["sampler_name"]
    return list(info[0] if isinstance(info[0], list) else info[1]["options"])


def drawn(server: Server, sampler: str, concept: str | None, **options: Any) -> torch.Tensor:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    if concept:
        model, clip = graphs.patch(graph, model, clip, [concept], **options)
    text = graphs.encode(graph, clip, PROMPT)
    samples = graphs.sample(
        graph, model, text, graphs.encode(graph, clip, ""), sampler_name=sampler, steps=3, scheduler="karras"
    )
    return graphs.drawn(server, graph, samples, f"sampler-{sampler}")


def test_every_sampler_gives_the_base_picture_for_a_zero_residual(server: Server, concepts: Any) -> None:
    found = names(server)
    assert len(found) > 20
    wrong = {}
    for sampler in found:
        plain, nothing, one = (drawn(server, sampler, c) for c in (None, "nothing", "round"))
        finite = bool(one.isfinite().all())
        if not finite or graphs.close(nothing, plain) > 5e-3 or graphs.close(one, plain) < 5e-3:
            wrong[sampler] = (finite, graphs.close(nothing, plain), graphs.close(one, plain))
    assert not wrong


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde", "heun", "uni_pc", "lcm"])
def test_own_is_exact_for_samplers_with_noise_of_their_own(server: Server, concepts: Any, sampler: str) -> None:
    """With a zero residual both trajectories are the base model's, noise and all."""
    plain = drawn(server, sampler, None)
    assert graphs.close(drawn(server, sampler, "nothing", base_latent="own"), plain) < 5e-3


def test_own_refuses_a_sampler_that_adapts_its_steps(server: Server, concepts: Any) -> None:
    with pytest.raises(PromptError, match="needs a sampler with fixed steps"):
        drawn(server, "dpm_adaptive", "round", base_latent="own")

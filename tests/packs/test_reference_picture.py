"""Advanced-ControlNet's Reference, which expects the blocks of Stable Diffusion 1.5, beside Infusion.

It draws noise for every row of a forward. Base rows therefore change what the others are shown: with them a concept of
zeros is not the base model, which docs/compatibility.md says.
"""

from __future__ import annotations

import torch

from comfyui_process.graph import Graph
from comfyui_process.server import Server
from infusion_core.residual_file import save_concept
from infusion_core.residuals import Base, ConceptResidual, zero_residual
from infusion_core.sites import Site
from tests.host import graphs

PACKS = ("ComfyUI-Advanced-ControlNet",)
CAT, DOG = "a photo of a cat", "a photo of a dog!"
BLOCKS = ("down.0", "down.1", "down.2", "mid", "up.1", "up.2", "up.3")


def write(server: Server) -> None:
    """The concepts "cat" and "no-cat", the second of zeros."""
    sites = tuple(Site(block, block, 1) for block in BLOCKS)
    blank, generator = zero_residual(Base("sd1", 768, "epsilon", sites), "cat"), torch.Generator().manual_seed(1)
    drawn = {k: torch.randn(t.shape, generator=generator) * 20 for k, t in blank.tensors.items()}
    concept = ConceptResidual("cat", "block", drawn, blank.architecture, blank.context_width, blank.prediction)
    for name, made in (("cat", concept), ("no-cat", blank)):
        save_concept(server.base / "models" / "infusion" / f"{name}.safetensors", made)


def drawn(server: Server, prompt: str, concept: str | None, strength: float = 1.0, reference: bool = True,
          **options: float) -> torch.Tensor:  # fmt: skip
    graph = Graph()
    loaded = graph.add("TestSmall", kind="sd1")
    model, clip, vae = loaded[0], loaded[1], graphs.load(graph)[2]
    if concept:
        model, clip = graphs.patch(graph, model, clip, [concept], strength, **options)
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    texts = [graphs.encode(graph, clip, text) for text in (prompt, "")]
    if reference:
        image = graph.add("EmptyImage", width=128, height=128, batch_size=1, color=0x40A0C0)
        shown = graph.add("ACN_ReferencePreprocessor", image=image, vae=vae, latent_size=latent)
        control = graph.add(
            "ACN_ReferenceControlNet", reference_type="reference_attn", style_fidelity=0.5, ref_weight=1.0
        )
        applied = graph.add(
            "ACN_AdvancedControlNetApply_v2", positive=texts[0], negative=texts[1], control_net=control, image=shown,
            strength=1.0, start_percent=0.0, end_percent=1.0,
        )  # fmt: skip
        texts = [applied[0], applied[1]]
    name = f"{concept}-{strength}-{reference}-{options.get('maps_end')}-{len(prompt)}"
    return graphs.drawn(server, graph, graphs.sample(graph, model, *texts, latent=latent), name)


def test_a_reference_picture(server: Server) -> None:
    write(server)
    plain = drawn(server, CAT, None)
    assert graphs.close(plain, drawn(server, CAT, None, reference=False)) > 1e-4  # it does something
    assert torch.equal(drawn(server, DOG, "cat"), drawn(server, DOG, None))
    assert torch.equal(drawn(server, CAT, "cat", 0.0), plain)
    assert torch.equal(drawn(server, CAT, "no-cat", maps_end=0.0), plain)
    for options in ({}, {"maps_end": 0.0}):
        assert graphs.close(drawn(server, CAT, "cat", **options), plain) > 5e-3
    limit = graphs.close(drawn(server, CAT, "no-cat"), plain)
    assert 1e-5 < limit < 2e-3  # the noise of rows, which is the limit that the table names

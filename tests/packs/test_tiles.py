"""Pictures drawn in tiles: Tiled Diffusion, Ultimate SD Upscale."""

from __future__ import annotations

import pytest

from comfyui_process.graph import Graph, Output
from comfyui_process.server import Server

from .trial import Bench, Build, Pair, check

PACKS = ("ComfyUI-TiledDiffusion", "ComfyUI_UltimateSDUpscale")
SIZE = 256  # nine tiles of 128, so that the last of batches of four has one


def tiled(method: str, batch: int, pictures: int = 1, control: bool = False) -> tuple[Build, Build]:
    """The stack, and the same with Infusion by hand inside each tile."""

    def build(bench: Bench, oracle: bool = False) -> Output:
        positive = bench.encode(bench.text)
        if control:
            positive = bench.add(
                "ControlNetApply", conditioning=positive, control_net=bench.add("TestControl"),
                image=bench.image(SIZE), strength=1.0,
            )  # fmt: skip
        bench.model = bench.add(
            "TiledDiffusion", model=bench.model, method=method, tile_width=128, tile_height=128, tile_overlap=64,
            tile_batch_size=batch,
        )  # fmt: skip
        model = bench.reference(bench.encode(bench.text)) if oracle else bench.model
        latent = bench.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=pictures)
        return bench.sample(positive, model, latent=latent)

    return build, lambda bench: build(bench, oracle=True)


def pair(*args: object, **options: object) -> Pair:
    ours, oracle = tiled(*args, **options)  # type: ignore[arg-type]
    return Pair(ours, oracle=oracle)


def before(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
    """Tiles in front of our patch."""
    wrapped = graph.add(
        "TiledDiffusion", model=model, method="MultiDiffusion", tile_width=128, tile_height=128, tile_overlap=64,
        tile_batch_size=4,
    )  # fmt: skip
    return wrapped, clip


def large(bench: Bench, model: Output | None = None) -> Output:
    latent = bench.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)
    return bench.sample(model=model, latent=latent)


def upscaled(bench: Bench) -> Output:
    """A picture of four tiles, each drawn again with a little noise."""
    image = bench.add(
        "UltimateSDUpscaleNoUpscale", upscaled_image=bench.image(SIZE), model=bench.model,
        positive=bench.encode(bench.text), negative=bench.encode(""), vae=bench.vae, seed=5, steps=4, cfg=3.0,
        sampler_name="euler", scheduler="normal", denoise=0.7, mode_type="Linear", tile_width=128, tile_height=128,
        mask_blur=8, tile_padding=32, seam_fix_mode="Half Tile", seam_fix_denoise=0.5, seam_fix_width=64,
        seam_fix_mask_blur=8, seam_fix_padding=16, force_uniform_tiles=True, tiled_decode=False, batch_size=1,
    )  # fmt: skip
    return bench.latent_of(image)


def upscaled_by_hand(bench: Bench) -> Output:
    bench.model = bench.reference(bench.encode(bench.text))
    return upscaled(bench)


METHODS = ("MultiDiffusion", "Mixture of Diffusers", "SpotDiffusion")
PAIRS = {
    **{f"{method}, {batch} at once": pair(method, batch) for method in METHODS for batch in (1, 4)},
    "MultiDiffusion, two pictures": pair("MultiDiffusion", 4, pictures=2),
    "MultiDiffusion with a ControlNet": pair("MultiDiffusion", 4, control=True),
    "tiles before our patch": Pair(
        large, before=before, oracle=lambda bench: large(bench, bench.reference(bench.encode(bench.text)))
    ),
    # the pictures of tiles pass through 8 bits
    "Ultimate SD Upscale": Pair(upscaled, oracle=upscaled_by_hand, near=0.05, zero=0.05),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_tiles(server: Server, pair: str) -> None:
    check(server, PAIRS[pair])

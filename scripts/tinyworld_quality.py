"""How well TinyWorld's base model obeys prompts: share of pictures right, by aspect, and example pictures.

python scripts/tinyworld_quality.py --count 100 --out docs/tinyworld
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from rich.progress import track

from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.embedded.tinyworld import render
from infusion_core.embedded.tinyworld.captions import caption, random_scene
from infusion_core.embedded.tinyworld.concepts import HELD_OUT_LOOKS
from infusion_core.embedded.tinyworld.fitting import as_pixels, locate
from infusion_core.embedded.tinyworld.oracle import score, things_found
from infusion_core.embedded.tinyworld.reading import obeyed, read_look
from infusion_core.embedded.tinyworld.world import Scene

SHOWN = 16  # pictures of each number of things


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tinyworld")
    parser.add_argument("--count", type=int, default=100, help="prompts of one thing, of two and of three each")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("out/tinyworld-quality"))
    args = parser.parse_args()
    model = load_model(args.model)
    settings = SampleSettings(args.steps or model.steps, args.guidance or model.guidance)
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = {number: pictures(model, settings, number, args.count, args.seed) for number in (1, 2, 3)}

    report = {
        "count": args.count,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "obeyed": aspects_right(drawn[1]),
        "rims": rims(drawn[1]),
        "all_things_found": {number: found(drawn[number]) for number in (2, 3)},
        "looks_right": {number: looks_right(drawn[number]) for number in (2, 3)},
        "autoencoder_concept_error": autoencoder_error(model, [scene for scene, _ in drawn[1][:40]]),
    }
    sheet([picture for number in drawn for _, picture in drawn[number][:SHOWN]]).save(
        args.out / "base-samples.png", optimize=True
    )
    (args.out / "base-quality.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


Drawn = Sequence[tuple[Scene, Image.Image]]


def pictures(model: EmbeddedModel, settings: SampleSettings, things: int, count: int, seed: int) -> Drawn:
    """Random scenes of so many things, and what is drawn for captions that tell all of them."""
    rng = Random(f"{seed} {things}")
    counts = tuple(float(number == things) for number in (1, 2, 3))
    scenes = [random_scene(rng, HELD_OUT_LOOKS, counts) for _ in range(count)]
    return [
        (scene, draw(model, caption(scene), [], 1, seed + i, settings)[0])
        for i, scene in enumerate(track(scenes, f"drawing {things}"))
    ]


def aspects_right(drawn: Drawn) -> dict[str, float]:
    """Share of one-thing pictures that got each aspect right."""
    right = defaultdict(list)
    for scene, picture in drawn:
        for aspect, good in obeyed(picture, scene).items():
            right[aspect].append(good)
    return {aspect: float(np.mean(values)) for aspect, values in right.items()}


def rims(drawn: Drawn) -> dict[str, float]:
    """Share of each rim; captions never tell it, so the model chooses."""
    seen = [read_look(picture, locate(as_pixels(picture), s, s.things[0])).rim or "none" for s, picture in drawn]
    return {rim: seen.count(rim) / len(seen) for rim in sorted(set(seen))}


def found(drawn: Drawn) -> float:
    """Share of pictures that show every thing, none merged with another or missing."""
    return float(np.mean([things_found(picture, scene) == len(scene.things) for scene, picture in drawn]))


def looks_right(drawn: Drawn) -> float:
    """Share of things with the look that the caption tells, of pictures of several."""
    return float(
        np.mean(
            [
                read_look(picture, locate(as_pixels(picture), scene, thing)).sayable == thing.look.sayable
                for scene, picture in drawn
                for thing in scene.things
                if thing.look
            ]
        )
    )


def autoencoder_error(model: EmbeddedModel, scenes: Sequence[Scene]) -> float:
    """Mean concept error of exact pictures that went through the autoencoder: no drawing can be better."""
    exact = [render(scene) for scene in scenes]
    return float(
        np.mean([score(p, s).concept_error for p, s in zip(model.decode(model.encode(exact)), scenes, strict=True)])
    )


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in rows of eight."""
    out = Image.new("RGB", (8 * 132, -(-len(pictures) // 8) * 132), "white")
    for i, picture in enumerate(pictures):
        out.paste(picture, (i % 8 * 132, i // 8 * 132))
    return out


if __name__ == "__main__":
    main()

"""How well TinyWorld's base model obeys prompts: share of pictures right, by aspect, and example pictures.

python scripts/tinyworld_quality.py --count 200 --out docs/tinyworld
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from rich.progress import track

from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.embedded.tinyworld.captions import caption, random_scene
from infusion_core.embedded.tinyworld.concepts import HELD_OUT_LOOKS
from infusion_core.embedded.tinyworld.oracle import obeyed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tinyworld")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("out/tinyworld-quality"))
    args = parser.parse_args()
    model = load_model(args.model)
    settings = SampleSettings(args.steps or model.steps, args.guidance or model.guidance)
    args.out.mkdir(parents=True, exist_ok=True)

    rng, right, pictures = Random(args.seed), defaultdict(list), []
    for i in track(range(args.count), "drawing"):
        scene = random_scene(rng, HELD_OUT_LOOKS, counts=(1, 0, 0))
        picture = draw(model, caption(scene), [], 1, args.seed + i, settings)[0]
        for aspect, good in obeyed(picture, scene).items():
            right[aspect].append(good)
        pictures.append(picture)
    shares = {aspect: float(np.mean(values)) for aspect, values in right.items()}
    sheet = Image.new("RGB", (8 * 132, 4 * 132), "white")
    for i, picture in enumerate(pictures[:32]):
        sheet.paste(picture, (i % 8 * 132, i // 8 * 132))
    sheet.save(args.out / "base-samples.png", optimize=True)
    report = {"count": args.count, "steps": settings.steps, "guidance": settings.guidance, "obeyed": shares}
    (args.out / "base-quality.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()

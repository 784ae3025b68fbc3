"""Load Subject Photos in the real host: which files are taken, which square of each, and what it says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from comfyui_process.graph import Graph, Output, PromptError, Ran
from comfyui_process.server import Server

from . import graphs
from .conftest import LACKING

EDGE = 64


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folder(server: Server, name: str, **photos: Image.Image) -> Path:
    made = server.base / "input" / name
    made.mkdir()
    for file, photo in photos.items():
        photo.save(made / f"{file}.png")
    return made


def add(graph: Graph, **changed: Any) -> Output:
    return graph.add(
        "InfusionLoadPhotos", **{"folder": "", "photos": "", "resolution": EDGE, "crop": "center", **changed}
    )


def run(server: Server, graph: Graph, photos: Output, name: str) -> tuple[list[np.ndarray], list[np.ndarray], str, Ran]:
    """The squares and masks that come out, the names, and what the run left."""
    mask = graph.add("MaskToImage", mask=photos[1])
    graph.add("SaveImage", images=photos, filename_prefix=f"{name}-photo")
    graph.add("SaveImage", images=mask, filename_prefix=f"{name}-mask")
    shown = graph.add("PreviewAny", source=photos[2])
    ran = server.run(graph)
    squares, masks = (
        [np.asarray(Image.open(p)) for p in sorted(server.output.glob(f"{name}-{what}_*.png"))]
        for what in ("photo", "mask")
    )
    return squares, masks, ran.outputs[shown.node]["text"][0], ran


def test_a_folder_and_uploads_become_one_batch_in_natural_order(server: Server) -> None:
    first, second, tenth, uploaded = (noise((EDGE, EDGE), seed) for seed in range(4))
    made = folder(server, "order", cat2=second, cat10=tenth, Cat1=first)
    uploaded.save(server.base / "input" / "uploaded.png")
    graph = Graph()
    squares, masks, names, ran = run(server, graph, add(graph, folder="order", photos="\nuploaded.png\n"), "order")
    assert names.splitlines() == ["Cat1.png", "cat2.png", "cat10.png", "uploaded.png"]
    for square, photo in zip(squares, (first, second, tenth, uploaded), strict=True):
        assert np.abs(square.astype(int) - np.asarray(photo)).max() <= 1
    assert all((mask == 255).all() for mask in masks)
    told = ran.outputs["1"]
    assert len(told["images"]) == 4  # thumbnails
    assert told["text"] == ["4 photos: Cat1.png, cat2.png, cat10.png, uploaded.png"]
    graph = Graph()
    assert run(server, graph, add(graph, folder=str(made)), "absolute")[2].splitlines()[0] == "Cat1.png"


def test_what_cannot_be_used_is_skipped_and_named(server: Server) -> None:
    photo = noise((EDGE, EDGE), 5)
    made = folder(server, "mixed", a=photo, b=photo, c=noise((EDGE, EDGE), 6))
    (made / "cut.png").write_bytes((made / "c.png").read_bytes()[:-2000])
    (made / "notes.txt").write_text("not a photo")
    photo.save(made / "old.tif")
    os.mkfifo(made / "pipe.jpg")
    graph = Graph()
    squares, _, names, ran = run(server, graph, add(graph, folder="mixed", photos="gone.png"), "mixed")
    assert names.splitlines() == ["a.png", "c.png"]
    assert len(squares) == 2
    (text,) = ran.outputs["1"]["text"]
    assert "6 skipped: b.png (the same as a.png); cut.png (damaged: " in text
    for bad in (
        "notes.txt (not a JPEG",
        "old.tif (a TIFF picture or raw photo; save it as JPEG)",
        "pipe.jpg (not a file but a pipe or a device)",
        "gone.png (there is no such file)",
    ):
        assert bad in text


def test_rotation_and_transparency_are_seen_to(server: Server) -> None:
    made = folder(server, "turned")
    photo = noise((EDGE, EDGE), 7)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(made / "a.png", exif=exif)
    Image.new("RGBA", (EDGE, EDGE), (255, 0, 0, 0)).save(made / "b.png")
    graph = Graph()
    squares, *_ = run(server, graph, add(graph, folder="turned", transparency=False), "turned")
    upright = np.asarray(photo.transpose(Image.Transpose.ROTATE_270))
    assert np.abs(squares[0].astype(int) - upright).max() <= 1
    assert (squares[1] == 255).all()


def test_the_middle_square_or_the_one_round_a_mask(server: Server) -> None:
    photo = noise((4 * EDGE, 2 * EDGE), 8)
    folder(server, "wide", a=photo)
    marked = Image.new("L", photo.size)
    marked.paste(255, (200, 10, 232, 74))  # 32 x 64 px, near the right edge
    Image.merge("RGB", [marked] * 3).save(server.base / "input" / "marked.png")

    def cut(crop: str) -> tuple[np.ndarray, np.ndarray]:
        graph = Graph()
        mask = graph.add("ImageToMask", image=graph.add("LoadImage", image="marked.png"), channel="red")
        squares, masks, *_ = run(server, graph, add(graph, folder="wide", crop=crop, mask=mask), f"wide-{crop}")
        return squares[0].astype(int), masks[0][..., 0]

    middle, part = cut("center")
    assert np.abs(middle - np.asarray(ImageOps.fit(photo, (EDGE, EDGE), Image.Resampling.LANCZOS))).max() <= 2
    assert part[:, :50].max() == 0  # 64..192 of the photo, 2 px each: the mask begins at 200
    subject, part = cut("subject")
    assert np.abs(subject - np.asarray(photo.crop((184, 10, 248, 74)))).max() <= 1
    assert (part[:, 17:47] == 255).all()
    assert (part[:, :15] == 0).all()
    assert (part[:, 49:] == 0).all()


def test_a_box_is_obeyed_where_the_host_has_boxes(server: Server) -> None:
    if "PrimitiveBoundingBox" not in server.get("/object_info"):
        pytest.skip(f"{LACKING} boxes")
    folder(server, "boxed", a=noise((3 * EDGE, 2 * EDGE), 9), b=noise((2 * EDGE, 3 * EDGE), 10))
    graph = Graph()
    box = graph.add("PrimitiveBoundingBox", x=100, y=64, width=64, height=32)
    squares, masks, *_ = run(server, graph, add(graph, folder="boxed", crop="subject", box=box), "boxed")
    first = np.asarray(noise((3 * EDGE, 2 * EDGE), 9).crop((100, 48, 164, 112)))
    assert np.abs(squares[0].astype(int) - first).max() <= 1
    assert (masks[0][16:48] == 255).all()
    assert (masks[0][:16] == 0).all()
    part = noise((2 * EDGE, 3 * EDGE), 10).resize((EDGE, EDGE), Image.Resampling.LANCZOS, box=(96, 64, 128, 96))
    assert np.abs(squares[1].astype(int) - np.asarray(part)).max() <= 1  # the box is cut off at 128, the square moved
    graph = Graph()
    outside = graph.add("PrimitiveBoundingBox", x=190, y=0, width=10, height=10)
    with pytest.raises(PromptError, match=r"the box of b\.png lies outside the photo, which is 128x192 px"):
        run(server, graph, add(graph, folder="boxed", crop="subject", box=outside), "outside")


BAD = {
    "no folder": ({"folder": "nowhere"}, "nowhere: there is no such folder"),
    "outside": ({"folder": "../output"}, "is not below ComfyUI's input folder"),
    "nothing": ({}, "there are no photos chosen; upload 3-6"),
    "empty": ({"folder": "empty"}, "there are no photos in .*empty"),
    "useless": ({"folder": "useless"}, r"none of 1 files can be used: notes\.txt \(not a JPEG"),
    "no subject": ({"folder": "one", "crop": "subject"}, "crop is 'subject' without a mask or box; connect one"),
    "uploads": ({"photos": "x.png\n" * 201}, "201 photos are chosen; 3-6 of one subject are enough"),
    "round": ({"folder": "a\0b"}, "is not below ComfyUI's input folder|there is no such folder"),
    "masks": ({"folder": "one", "mask": 2}, "2 masks for 1 photos"),
}


@pytest.fixture(scope="module")
def poor(server: Server) -> None:
    folder(server, "empty")
    (folder(server, "useless") / "notes.txt").write_text("x")
    folder(server, "one", a=noise((EDGE, EDGE), 11))


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("poor")
def test_what_is_wrong_is_named(server: Server, case: str) -> None:
    changed, message = BAD[case]
    graph = Graph()
    if "mask" in changed:
        solid = graph.add("SolidMask", value=1.0, width=8, height=8)
        images = graph.add("RepeatImageBatch", image=graph.add("MaskToImage", mask=solid), amount=changed["mask"])
        changed = {**changed, "mask": graph.add("ImageToMask", image=images, channel="red")}
    with pytest.raises(PromptError, match=message):
        run(server, graph, add(graph, **changed), "bad")


def test_a_page_learns_of_other_folders_only_what_their_photos_show(server: Server, tmp_path: Path) -> None:
    for name in ("none", "some", "closed"):
        (tmp_path / name).mkdir()
    for name in ("none", "some"):
        (tmp_path / name / "id_rsa").write_text("secret")
        (tmp_path / name / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    noise((EDGE, EDGE), 16).save(tmp_path / "some" / "b.png")
    (tmp_path / "closed" / "cut.png").write_bytes((tmp_path / "some" / "b.png").read_bytes()[:-2000])
    said = set()
    for given in (
        tmp_path / "none",
        tmp_path / "gone",
        tmp_path / "none" / "id_rsa",
        tmp_path / ("x" * 300),
        "~nobody-such",
    ):
        with pytest.raises(PromptError) as caught:
            run(server, graph := Graph(), add(graph, folder=str(given)), "other")
        found = re.findall(r"there are no photos in .*? that can be used; name a folder with", str(caught.value))
        said.add(found[0].replace(str(given), "") if found else str(caught.value))
        assert "secret" not in str(caught.value)
        assert "heic" not in str(caught.value)
    assert len(said) == 1
    with pytest.raises(PromptError, match="there are no photos in the folder that can be used") as caught:
        run(server, graph := Graph(), add(graph, folder=str(tmp_path / "closed")), "other")
    assert "cut.png" not in str(caught.value)
    graph = Graph()
    *_, names, ran = run(server, graph, add(graph, folder=str(tmp_path / "some")), "other")
    assert names == "b.png"
    assert ran.outputs["1"]["text"] == [
        "1 photos: b.png\n1 skipped: a.heic (a HEIC picture; save it as JPEG)\n1 other files"
    ]


def loaded(server: Server, graph: Graph, photos: Output) -> bool:
    """Whether a run reads the photos, or takes what the one before it read."""
    graph.add("SaveImage", images=photos, filename_prefix="cached")
    ran = server.run(graph)
    return any(m["type"] == "executing" and m["data"]["node"] == photos.node for m in ran.messages)


def test_only_another_content_loads_again(server: Server) -> None:
    made = folder(server, "cached", a=noise((EDGE, EDGE), 12))

    def again() -> bool:
        return loaded(server, graph := Graph(), add(graph, folder="cached"))

    assert again()
    (made / "a.png").touch()
    assert not again()
    before = (made / "a.png").stat()
    noise((EDGE, EDGE), 13).save(made / "a.png")
    os.utime(made / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert again()
    for other in (".DS_Store", "Thumbs.db", "notes.md", "._a.png"):
        (made / other).write_bytes(b"no photo")
        assert not again(), other
    (made / "a.txt").write_text("a {} on a table")  # a caption
    assert again()
    (made / "a.txt").write_bytes(b"\xff")
    with pytest.raises(PromptError, match=r"the caption a\.txt cannot be read"):
        again()


@pytest.mark.parametrize("uploads", ["", "linked-upload.png"])
def test_a_linked_folder_loads_once(server: Server, uploads: str) -> None:
    folder(server, f"linked{len(uploads)}", a=noise((EDGE, EDGE), 17))
    noise((EDGE, EDGE), 18).save(server.base / "input" / "linked-upload.png")

    def again() -> bool:
        graph = Graph()
        linked = graph.add("PrimitiveString", value=f"linked{len(uploads)}")
        return loaded(server, graph, add(graph, folder=linked, photos=uploads))

    assert again()
    assert not again()


def test_photos_are_trained_on(server: Server) -> None:
    folder(server, "subject", a=noise((200, 128), 14), b=noise((128, 150), 15))
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    photos = add(graph, folder="subject", resolution=128)
    trained = graph.add(
        "InfusionTrain", model=model, clip=clip, vae=vae, images=photos, mask=photos[1], word="circle", steps=1,
        batch_size=1, learning_rate=0.01, layout="block", bins=1, resolution=128, seed=1, preview_every=0, captions="",
    )  # fmt: skip
    graph.add("SaveImage", images=trained[1], filename_prefix="curve")
    server.run(graph)
    assert list(server.output.glob("curve_*.png"))


def test_transparency_is_the_mask_and_may_be_what_the_square_follows(server: Server) -> None:
    seen = np.zeros((EDGE, 2 * EDGE), np.uint8)
    seen[:, EDGE:] = 255
    photo = noise((2 * EDGE, EDGE), 40)
    photo.putalpha(Image.fromarray(seen))
    folder(server, "clear", cat=photo, dog=noise((EDGE, EDGE), 41))

    def taken(name: str, **changed: Any) -> tuple[list[np.ndarray], list[np.ndarray], str, Ran]:
        graph = Graph()
        return run(server, graph, add(graph, folder="clear", **changed), name)

    squares, masks, _, ran = taken("clear-center")
    half = np.zeros((EDGE, EDGE))
    half[:, EDGE // 2 :] = 255
    assert np.abs(masks[0][..., 0].astype(int) - half)[:, [*range(28), *range(36, EDGE)]].max() <= 1
    assert (masks[1] == 255).all()
    assert (squares[0][:, : EDGE // 2 - 2] == 255).all()
    assert "1 with transparency as mask: cat.png" in ran.outputs["1"]["text"][0]
    squares, masks, _, _ = taken("clear-subject", crop="subject")
    assert np.abs(squares[0].astype(int) - np.asarray(photo)[:, EDGE:, :3]).max() <= 1
    assert (masks[0] == 255).all()
    _, masks, _, ran = taken("clear-off", transparency=False)
    assert (masks[0] == 255).all()
    assert "transparency" not in ran.outputs["1"]["text"][0]
    graph = Graph()
    whole = graph.add("SolidMask", value=1.0, width=2 * EDGE, height=EDGE)
    assert (run(server, graph, add(graph, folder="clear", mask=whole), "clear-mask")[1][0] == 255).all()

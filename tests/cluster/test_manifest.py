"""What a manifest says, in each of its forms, and what is refused, one sentence each."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from infusion_cluster.manifest import Defaults, read_manifest
from infusion_core.errors import InfusionError
from infusion_core.training.residual import ResidualSettings

SETTINGS = ResidualSettings(steps=7)


@pytest.fixture
def defaults(tmp_path):
    return Defaults(tmp_path / "out", SETTINGS)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "in"
    for name in ("tom", "rex 2", ".hidden"):
        (made / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(made / name / "0.png")
    (made / "readme.txt").write_text("not a folder")
    (made / "tom" / "word.txt").write_text(" cat\n")
    return made


def test_a_folder_of_folders(folder, defaults, tmp_path):
    jobs, refused = read_manifest(folder, defaults)
    assert refused == []
    assert [(j.name, j.word, j.photos, j.out) for j in jobs] == [
        ("rex 2", "rex 2", folder / "rex 2", tmp_path / "out" / "rex 2.safetensors"),
        ("tom", "cat", folder / "tom", tmp_path / "out" / "tom.safetensors"),
    ]
    assert all(job.settings == SETTINGS for job in jobs)
    jobs, _ = read_manifest(folder, Defaults(tmp_path, SETTINGS, "dog"))
    assert [job.word for job in jobs] == ["dog", "cat"]


def test_folders_without_photos_are_passed_over(folder, defaults, capsys):
    (folder / "logs").mkdir()
    (folder / "logs" / "tom.log").write_text("learned")
    jobs, refused = read_manifest(folder, defaults)
    assert [job.name for job in jobs] == ["rex 2", "tom"]
    assert refused == []
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"Passed over {folder / 'logs'}: no photos in it")


def test_a_cell_too_many_is_named_and_a_last_comma_is_none(folder, defaults):
    (folder / "list.csv").write_text("photos,word\ntom,cat,\nrex 2,dog, large\n")
    (job,), (refused,) = read_manifest(folder / "list.csv", defaults)
    assert (job.name, job.word) == ("tom", "cat")
    assert refused.name == "rex 2"
    assert "it has more cells than the heading, [' large']" in refused.why


def test_a_list_says_what_differs(folder, defaults, tmp_path):
    table = folder / "list.csv"
    table.write_text(
        "\ufeffphotos,word,out,name,steps,learning_rate,layout,replace_maps\n"
        "tom,cat,cats/tom.safetensors,my cat,9,0.5,block,false\n"
        "rex 2,dog,,,,,,\n", encoding="utf-8",
    )  # fmt: skip
    lines = folder / "list.jsonl"
    entries = [
        {"photos": "tom", "word": "cat", "out": "cats/tom.safetensors", "name": "my cat", "steps": 9,
         "learning_rate": 0.5, "layout": "block", "replace_maps": False},
        {"photos": str(folder / "rex 2"), "word": "dog"},
    ]  # fmt: skip
    lines.write_text("\n\n".join(map(json.dumps, entries)))
    for manifest in (table, lines):
        (one, other), refused = read_manifest(manifest, defaults)
        assert refused == []
        assert (one.name, one.word, one.photos) == ("my cat", "cat", folder / "tom")
        assert one.out == tmp_path / "out" / "cats" / "tom.safetensors"
        assert one.settings == ResidualSettings(steps=9, learning_rate=0.5, layout="block", replace_maps=False)
        assert (other.name, other.word, other.settings) == ("rex 2", "dog", SETTINGS)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"photos": "gone"}, "there is no folder .*gone; correct 'photos'"),
        ({"word": "cat"}, "it names no folder of photos"),
        ({"photos": "tom", "word": "<cat>"}, "cannot be a concept's word"),
        ({"photos": "tom", "out": "tom.ckpt"}, "must end in .safetensors, got tom.ckpt"),
        ({"photos": "tom", "steps": "many"}, "steps must be a whole number, got 'many'"),
        ({"photos": "tom", "steps": 0}, "steps must be at least 1"),
        ({"photos": "tom", "learning_rate": "x"}, "learning_rate must be a number"),
        ({"photos": "tom", "layout": "lora"}, "layout must be block or layer or value or parts, got 'lora'"),
        ({"photos": "tom", "replace_maps": "often"}, "replace_maps must be true or false"),
        ({"photos": "tom", "rank": 4}, "unknown column 'rank'"),
        ({"photos": "tom", "name": "../tom"}, "must be able to name a file"),
        ({"photos": "tom", "name": "a\0b"}, "must be able to name a file"),
        ({"photos": "tom", "name": "a" * 201}, "must be able to name a file"),
        ({"photos": "a\0b", "name": "a"}, "there is no folder|cannot be a path"),
        ({"photos": "a" * 300, "name": "a"}, "cannot be a path: File name too long"),
        ({"photos": "tom", "out": "../tom.safetensors"}, r"must lie in the folder --out, .*, got \.\./tom"),
        ({"photos": "tom", "out": "/tmp/tom.safetensors"}, "must lie in the folder --out"),
        ({"photos": "tom", "out": "a.safetensors"}, r"a\.safetensors is a folder, where a file must go"),
        ({"photos": "tom", "out": "b/c/d.safetensors"}, "b is a file, where a folder must go; correct 'out'"),
    ],
)
def test_an_entry_that_cannot_be_is_one_sentence_and_the_rest_goes_on(folder, defaults, entry, why):
    (defaults.out / "a.safetensors").mkdir(parents=True)
    (defaults.out / "b").write_text("")
    manifest = folder / "list.jsonl"
    manifest.write_text("\n".join(map(json.dumps, [entry, {"photos": "rex 2", "word": "dog"}])))
    jobs, (refused,) = read_manifest(manifest, defaults)
    assert [job.word for job in jobs] == ["dog"]
    with pytest.raises(InfusionError, match=why):
        raise InfusionError(refused.why)


def test_jobs_that_would_write_one_file_or_have_one_name_are_refused(folder, defaults):
    manifest = folder / "list.jsonl"
    entries = [
        {"photos": "tom", "name": "a", "out": "x.safetensors"},
        {"photos": "tom", "name": "b", "out": "./x.safetensors"},
        {"photos": "tom", "name": "c"}, {"photos": "tom", "name": "c", "out": "d.safetensors"}, {"photos": "rex 2"},
    ]  # fmt: skip
    manifest.write_text("\n".join(map(json.dumps, entries)))
    jobs, refused = read_manifest(manifest, defaults)
    assert [job.name for job in jobs] == ["rex 2"]
    assert [r.name for r in refused] == ["a", "b", "c", "c"]
    assert "2 jobs write" in refused[0].why
    assert "2 jobs are called 'c'" in refused[2].why


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("list.txt", "", "neither a folder nor a .csv or .jsonl"),
        ("list.csv", "photos,word\n", "holds no job"),
        ("list.jsonl", "{}\n{", "line 2 of .* is not JSON"),
        ("list.jsonl", "[]", "line 1 of .* is no object"),
        ("list.jsonl", "\udcff", "cannot be read"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path, defaults, name, text, why):
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InfusionError, match=why):
        read_manifest(tmp_path / name, defaults)
    with pytest.raises(InfusionError, match="cannot be read"):
        read_manifest(tmp_path / "gone.csv", defaults)


def test_a_word_that_cannot_be_read_is_one_jobs_fault(folder, defaults):
    (folder / "tom" / "word.txt").write_bytes(b"\xff\xfe\xff")
    jobs, (refused,) = read_manifest(folder, defaults)
    assert [job.name for job in jobs] == ["rex 2"]
    assert refused.name == "tom"
    assert "word.txt cannot be read" in refused.why

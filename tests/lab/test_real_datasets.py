"""The published datasets of subjects, from small folders written by hand in their form."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from infusion_core.errors import InfusionError
from infusion_lab.methods.method import Subject
from infusion_lab.real.dataset import apart, consecutive, holds
from infusion_lab.real.formats import read_dataset


def entry(number: int, word: str, name: str, prompts: str) -> dict[str, str]:
    return {
        "instance_prompt": f"photo of a <new{number}> {word}",
        "class_prompt": word,
        "instance_data_dir": f"./benchmark_dataset/{name}",
        "class_data_dir": f"./regularization/{name}",
        "prompt_filename": f"prompts/{prompts}.txt",
    }


def pair(one: dict[str, str], other: dict[str, str], prompts: str) -> list[dict[str, str]]:
    return [one, other, {"prompt_filename_compose": f"prompts/{prompts}.txt"}]


CAT, DOG = entry(1, "cat", "pet_cat1", "cat"), entry(2, "dog", "pet_dog1", "cat")
BEAR, PLUSHIE = entry(1, "bear plushie", "plushie_bear", "toy"), entry(2, "plushie", "plushie_sad", "toy")
GONE = entry(1, "tank", "transport_tank", "tank")


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(("pet_cat1", "pet_dog1", "plushie_bear", "plushie_sad")):
        photos = tmp_path / "benchmark_dataset" / name
        photos.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (400, 300), (50 * index, 80 * i, 9)).save(photos / f"{i}.jpg")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "cat.txt").write_text("Photo of a {}.\n\n a sad {} \nno subject here\n{} and {}\n")
    (tmp_path / "prompts" / "toy.txt").write_text("{} in a pool.\na {0} in a {1}\na {colour} {}")
    (tmp_path / "prompts" / "both.txt").write_text("the {0} and {1}.\n{1} beside the {0}\n{0} with {0}\na {}\n")
    (tmp_path / "dataset.json").write_text(json.dumps([CAT, GONE, DOG, BEAR, PLUSHIE]))
    together = [pair(CAT, DOG, "both"), pair(BEAR, PLUSHIE, "both"), pair(CAT, GONE, "gone"), pair(DOG, BEAR, "both")]
    (tmp_path / "dataset_multiconcept.json").write_text(json.dumps(together))
    return tmp_path


def test_customconcept101_is_read_as_published(folder):
    data = read_dataset(folder, "sks")
    assert data.title == "CustomConcept101"
    assert [(s.name, s.word, len(s.photos), s.rare_word) for s in data.subjects] == [
        ("pet_cat1", "cat", 3, "sks"),
        ("pet_dog1", "dog", 3, "sks"),
        ("plushie_bear", "bear plushie", 3, "sks"),
        ("plushie_sad", "plushie", 3, "sks"),
    ]
    cat, _, bear, _ = data.subjects
    assert data.prompts(cat) == ("Photo of a {}.", "a sad {}")
    assert data.prompts(bear) == ("{} in a pool.",)
    assert set(data.captions) == {
        *("Photo of a cat.", "a sad cat", "Photo of a dog.", "a sad dog"),
        *("bear plushie in a pool.", "plushie in a pool."),
    }


def test_its_pairs_are_those_whose_photos_are_there_and_whose_words_can_be_told_apart(folder):
    pairs = read_dataset(folder, "sks").pairs
    assert [tuple(s.name for s in p.subjects) for p in pairs] == [
        ("pet_cat1", "pet_dog1"),
        ("pet_dog1", "plushie_bear"),
    ]
    assert pairs[0].prompts == ("the {0} and {1}.", "{1} beside the {0}")
    (folder / "dataset_multiconcept.json").unlink()
    assert read_dataset(folder, "sks").pairs == ()


def test_photos_are_no_larger_than_wanted(folder):
    assert {p.size for s in read_dataset(folder, "sks").subjects for p in s.photos} == {(400, 300)}
    assert {p.size for s in read_dataset(folder, "sks", 64).subjects for p in s.photos} == {(64, 64)}


def without(key: str) -> str:
    return json.dumps([{k: v for k, v in CAT.items() if k != key}])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("dataset.json", "{}", "dataset.json is not a list in JSON"),
        ("dataset.json", "[" * 100_000, "dataset.json is not a list in JSON"),
        ("dataset.json", without("class_prompt"), "entry 1 of .* has no class_prompt"),
        ("dataset.json", without("instance_data_dir"), "entry 1 of .* has no instance_data_dir"),
        ("dataset.json", json.dumps([GONE]), "no subject of .* has photos there; unpack benchmark_dataset.zip"),
        ("dataset.json", json.dumps([CAT | {"instance_data_dir": "../photos"}]), "which is outside"),
        ("dataset.json", json.dumps([CAT | {"instance_data_dir": "/photos"}]), "which is outside"),
        ("dataset.json", json.dumps([CAT | {"prompt_filename": "prompts/no.txt"}]), "no.txt cannot be read: No such"),
        ("dataset_multiconcept.json", json.dumps([[CAT, DOG]]), "entry 1 of .* is not two concepts"),
        ("dataset_multiconcept.json", json.dumps([[CAT, DOG, {}]]), "entry 1 of .* has no prompt_filename_compose"),
        ("prompts/cat.txt", "a cat\n", r"cat.txt has no prompt with \{\};"),
        ("prompts/both.txt", "a {0}\n", r"both.txt has no prompt with \{0\} and \{1\};"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(folder, file, content, said):
    (folder / file).write_text(content)
    with pytest.raises(InfusionError, match=said):
        read_dataset(folder, "sks")


def test_prompts_that_are_not_text_are_refused(folder):
    (folder / "prompts" / "cat.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InfusionError, match=r"cat\.txt cannot be read: it is not text in UTF-8"):
        read_dataset(folder, "sks")


def test_a_folder_of_neither_dataset_is_refused(tmp_path):
    with pytest.raises(InfusionError, match=r"neither prompts_and_classes\.txt nor dataset\.json"):
        read_dataset(tmp_path, "sks")


def test_subjects_in_a_row_are_paired_once_and_only_if_their_words_differ():
    subjects = [Subject(f"{i}", w, (), "sks") for i, w in enumerate(("toy", "toy", "robot toy", "cat", "dog", "can"))]
    pairs = list(consecutive(subjects, ("{0} {1}",)))
    assert [tuple(s.name for s in p.subjects) for p in pairs] == [("0", "3"), ("4", "5")]
    assert not apart(subjects[2], subjects[0])


def test_a_text_holds_a_word_that_stands_alone():
    assert holds("A Dog, asleep", "dog")
    assert not holds("a hotdog", "dog")

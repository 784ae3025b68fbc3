from __future__ import annotations

import pytest

from infusion_core.captions import class_word, said_of
from infusion_core.errors import InfusionError


@pytest.mark.parametrize(
    "word", ["cat", "teddy bear", "Löwe", "猫", "हाथी", "แมว", "c3-po", "cat's", "st. bernard", "sks_dog"]
)
def test_class_words_stay_as_they_are(word):
    assert class_word(f" {word} ") == word
    assert class_word("x" * 200) == "x" * 200


BAD = ["<circle>", "../../x", "a/b", "a\\b", "ca\nt", "ca\x00t", "ca\u200bt", "(cat:1.2)", "a cat, a dog", "{}",
       ".cat", "-cat", "x" * 201]  # fmt: skip


@pytest.mark.parametrize("word", BAD)
def test_what_no_prompt_could_say_is_refused(word):
    with pytest.raises(InfusionError, match=r"cannot be a concept's word; write a plain class word such as") as refused:
        class_word(word)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("word", ["", " ", "\n"])
def test_an_empty_word_is_refused(word):
    with pytest.raises(InfusionError, match="the word is empty"):
        class_word(word)


@pytest.mark.parametrize("line", ["a dog on grass", "A DOG, asleep", "my dog's bed", "one {} asleep"])
def test_a_caption_says_the_word_alone_or_has_a_place_for_it(line):
    every, said = said_of([(line,)], ["1.jpg"], ["a photo of a dog"], "dog")
    assert (every, said) == ([line.replace("{}", "dog")], [[0]])


@pytest.mark.parametrize("line", ["two dogs on grass", "a hotdog", "a cat"])
def test_a_caption_with_the_word_within_another_is_named_with_its_photo(line):
    with pytest.raises(InfusionError, match=rf"a caption of 1\.jpg, '{line}', says neither {{}} nor 'dog'"):
        said_of([(line,)], ["1.jpg"], ["a photo of a dog"], "dog")


def test_an_accent_may_be_a_sign_of_its_own():
    assert said_of([("a caf\u00e9 at night",)], ["1.jpg"], [], "cafe\u0301")[1] == [[0]]

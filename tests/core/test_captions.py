from __future__ import annotations

import pytest

from infusion_core.captions import class_word
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

"""Words in prompts of any script, against a slow reading of the rules and the pieces of a byte-level tokenizer."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from infusion_core.embedded.text import ClipTokenizer
from infusion_core.errors import InfusionError
from infusion_core.tokens import bind_prompt, occurrences, pick
from tests.embedded.factories import byte_symbols

LETTERS = (
    "catsCATS éÉe\u0301o\u0308 İıi\u0307ſKß 猫小书熊 ねこカ\u3099ガー แมว่นารัก เกา ខ្មែរ ລາວ မြ हिन्दी 고양이 кот "
    "12²Ⅷ٣ _-.'’,:()😀\u200b\ufe0f\u00a0𠮷"
)
WORDS = (
    "cat", "Cat", "cats", "café", "cafe\u0301", "İs", "teddy cat", "猫", "小猫", "ねこ", "ガ", "カ\u3099", "แมว",
    "กา", "ขม", "न", "हिन्दी", "кот", "고양이", "r2", "t-a", "Straße", "𠮷",
)  # fmt: skip
UNSPACED = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER")

words = st.sampled_from(WORDS)
texts = st.lists(st.one_of(words, st.sampled_from(LETTERS), st.sampled_from(LETTERS)), max_size=12).map("".join)
anything = st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=30)


def read(text: str) -> str:
    """As CLIP's tokenizers read letters."""
    return "".join(letter.lower() for letter in unicodedata.normalize("NFC", text))


def kind(letter: str) -> str:
    return unicodedata.category(letter)[0]


def unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").removeprefix("COMBINING ").removeprefix("HALFWIDTH ").startswith(UNSPACED)


def stands(text: str, start: int, end: int) -> bool:
    """Whether no letter of the same word is beside ``text[start:end]``."""
    for at in (start, end):
        if 0 < at < len(text):
            before, after = text[at - 1], text[at]
            if kind(after) == "M":
                return False
            if kind(before) in "LM" and kind(after) == "L" and not (unspaced(before) or unspaced(after)):
                return False
    return True


def mentions(text: str, word: str) -> int:
    """How often a folded text says a folded word: every start and every end is tried."""
    count = start = 0
    while start < len(text):
        end = next((e for e in range(start + 1, len(text) + 1) if text[start:e].split() == word.split()), None)
        exact = end is not None and not text[start].isspace()
        if exact and stands(text, start, end):
            count, start = count + 1, end
        else:
            start += 1
    return count


def attempt(function, *given):
    """What it gives, or why it refuses."""
    try:
        return function(*given), ""
    except InfusionError as error:
        return None, str(error)


@given(st.one_of(texts, anything), words)
def test_a_prompt_says_a_word_where_a_slow_reader_finds_it(text, word):
    text = text.replace("<", " ")
    bound = bind_prompt(text, {"x": word})
    assert bound.text == text
    assert (bound.seen[0] if bound.chosen[0] is None else len(bound.chosen[0])) == mentions(read(text), read(word))


@given(st.text(st.characters(), max_size=20), st.dictionaries(words, st.text(st.characters(), max_size=8), max_size=3))
@example("<cafe\u0301>", {"café": "cat"})
def test_any_prompt_is_bound_or_refused(prompt, concepts):
    bound, refused = attempt(bind_prompt, prompt, concepts)
    assert refused.isprintable() if refused else len(bound.chosen) == len(concepts)


def symbols(text: str) -> list[str]:
    """The pieces that the bytes of a text are."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [
        byte_symbols()[[*printable, *(b for b in range(256) if b not in printable)].index(b)] for b in text.encode()
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Byte-level as CLIP's, with merges within a letter and merges that swallow the edge of one."""
    merges = [("c", "a"), ("ca", "t</w>"), ("ca", "t")]
    merges += [(symbols(first)[-1], symbols(second)[0]) for first, second in ("书猫", "มแ", "熊小", "ガー")]
    merges += [tuple(symbols(letter)[:2]) for letter in "猫小แมね"]
    vocabulary = [*byte_symbols(), *(s + "</w>" for s in byte_symbols()), *(a + b for a, b in merges)]
    vocabulary = list(dict.fromkeys([*vocabulary, "<|startoftext|>", "<|endoftext|>"]))
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


@given(texts, words)
@example("一只猫在看书", "猫")
@example("书猫", "猫")  # a token holds the end of one letter and the start of the next
@example("cat 书猫 cat", "cat")
@example("可愛いcatです", "cat")
def test_what_is_bound_spells_the_word_and_nothing_is_left_out_silently(tokenizer, text, word):
    text, ours = text.replace("<", " "), ClipTokenizer(tokenizer, 77)
    bound = bind_prompt(text, {"x": word})
    ids, starts = ours.split(text)
    where = occurrences(ids, starts, ours.split(word)[0], ours.pieces)
    found, refused = attempt(pick, where, bound.chosen[0], word, bound.seen[0])
    if refused:  # never where letters of the word's script are apart from it
        assert "put spaces around it" in refused
        assert any(map(unspaced, read(text)))
        return
    for place in found:
        assert tokenizer.decode(ids[place.start : place.stop]).split() == tokenizer.decode(ours.split(word)[0]).split()
        assert len(place) == len(ours.split(word)[0])
    assert len(found) >= mentions(read(text), read(word))


def test_a_word_of_a_script_without_spaces_is_found_in_a_sentence(tokenizer):
    ours = ClipTokenizer(tokenizer, 77)
    ids, starts = ours.split("一只猫在看书")
    (place,) = occurrences(ids, starts, ours.split("猫")[0], ours.pieces)
    assert tokenizer.decode(ids[place.start : place.stop]) == "猫"
    ids, starts = ours.split("一只书猫")
    found = occurrences(ids, starts, ours.split("猫")[0], ours.pieces)
    with pytest.raises(InfusionError, match="does not see every '猫' of the prompt as a word; put spaces around it"):
        pick(found, None, "猫", 1)
    assert pick(found, (), "猫", 1) == []  # not asked for

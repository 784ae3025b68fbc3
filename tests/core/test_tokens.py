from __future__ import annotations

import pytest

from infusion_core.errors import InfusionError
from infusion_core.tokens import bind_prompt, occurrences, pick, spans, standing


def test_every_occurrence_of_the_word_without_a_placeholder():
    bound = bind_prompt("a cat and a Cat", {"tom": "cat"})
    assert bound.text == "a cat and a Cat"
    assert bound.chosen == (None,)
    assert bound.mentions(0)


def test_a_placeholder_becomes_the_word_and_binds_that_one_only():
    bound = bind_prompt("a cat chasing <Tom> and <tom>", {"tom": "cat"})
    assert bound.text == "a cat chasing cat and cat"
    assert bound.chosen == ((1, 2),)


def test_two_concepts_of_one_word_by_placeholders():
    bound = bind_prompt("<a> beside <b>, <a>", {"a": "cat", "b": "cat"})
    assert bound.text == "cat beside cat, cat"
    assert bound.chosen == ((0, 2), (1,))


def test_a_concept_without_placeholder_leaves_the_others_word_alone():
    bound = bind_prompt("<a> beside a cat", {"a": "cat", "b": "cat"})
    assert bound.chosen == ((0,), (1,))


def test_two_concepts_that_want_the_same_word_are_refused():
    with pytest.raises(InfusionError, match=r"share the word 'Cat'; write <a> and <b>"):
        bind_prompt("a cat", {"a": "cat", "b": "Cat"})


def test_two_concepts_of_one_word_do_no_harm_where_it_does_not_stand_free():
    assert bind_prompt("a dog", {"a": "cat", "b": "cat"}).text == "a dog"
    assert bind_prompt("<a>", {"a": "cat", "b": "cat", "c": "cat"}).chosen == ((0,), (), ())


def test_an_unknown_placeholder_is_named():
    with pytest.raises(InfusionError, match=r"names <rex>.*loaded: <tom>"):
        bind_prompt("a photo of <rex>", {"tom": "cat"})


@pytest.mark.parametrize(
    ("prompt", "expected"), [("cats", False), ("a cat's", True), ("concat", False), ("cat2", True)]
)
def test_words_end_where_letters_end(prompt, expected):
    assert bind_prompt(prompt, {"tom": "cat"}).mentions(0) is expected


def test_a_word_of_two_parts_may_be_spaced_freely():
    assert bind_prompt("a stuffed   animal", {"bear": "stuffed animal"}).mentions(0)


def test_occurrences_respect_word_boundaries():
    # "ox fox box" where fox = f + ox and ox is a token that also ends longer words
    ids, starts = [7, 1, 7, 7], [True, True, False, True]
    assert occurrences(ids, starts, [7]) == [range(0, 1), range(3, 4)]


def test_a_match_must_not_stop_inside_a_word():
    assert occurrences([4, 5, 6], [True, True, False], [4, 5]) == []


def test_multi_token_words_repeat_without_overlap():
    assert occurrences([4, 4, 4, 4, 4], [True] * 5, [4, 4]) == [range(0, 2), range(2, 4)]


def test_positions_skip_the_special_tokens_of_every_chunk():
    # 75 text tokens a chunk between start and end: text token 74 is context 75, text token 75 is context 77 + 1
    assert spans([range(74, 76)], None, "w", 75, 77) == ((75, 78),)
    assert spans([range(0, 1), range(150, 151)], (1,), "w", 75, 77) == ((155,),)


def test_a_tokenizer_that_disagrees_is_reported():
    with pytest.raises(InfusionError, match="put spaces around it"):
        spans([range(0, 1)], (1,), "w", 75, 77)


def test_a_prompt_mentions_what_it_names():
    words = {"tom": "cat", "rex": "dog", "ann": "cat"}
    found = bind_prompt("a <tom> and a Dog on a <ann>", words)
    assert [found.mentions(i) for i in range(3)] == [True, True, True]
    assert found.text == "a cat and a Dog on a cat"
    other = bind_prompt("a <tom> alone", {"tom": "cat", "ann": "cat"})
    assert other.chosen == ((0,), ())
    assert [other.mentions(i) for i in range(2)] == [True, False]
    assert not bind_prompt("a dogma", {"rex": "dog"}).mentions(0)


@pytest.mark.parametrize("loaded", [{"tom": "cat", "rex": "dog"}, {}])
def test_an_unknown_placeholder_names_what_is_loaded(loaded):
    listed = "<tom>, <rex>" if loaded else "none"
    with pytest.raises(InfusionError, match=f"the prompt names <max> but no such concept is loaded; loaded: {listed}$"):
        bind_prompt("a <max>", loaded)


def test_a_word_is_found_at_every_place():
    for at in range(5):
        ids = [9] * 5
        ids[at] = 7
        assert occurrences(ids, [True] * 5, [7]) == [range(at, at + 1)]
        assert spans([range(at, at + 1)], None, "cat", 3, 5) == ((at // 3 * 5 + 1 + at % 3,),)
    with pytest.raises(InfusionError, match="does not see every 'cat' of the prompt as a word"):
        spans([range(1)], (0, 1), "cat", 3, 5)


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("一只猫在看书", "猫", 1),
        ("熊猫和猫", "猫", 2),
        ("うちのねこが本を読む", "ねこ", 1),
        ("แมวน่ารัก", "แมว", 1),
        ("แม่น้ำ", "แม", 0),  # a tone mark belongs to the letter before it
        ("可愛いcatです", "cat", 1),
        ("고양이가", "고양이", 0),  # Korean has spaces
        ("हिन्दी", "न", 0),  # a letter inside a word
        ("gato cafe\u0301", "caf\u00e9", 1),
        ("gato caf\u00e9", "cafe\u0301", 1),
        ("cafe\u0301", "cafe", 0),
        ("İSTANBUL", "İstanbul", 1),
        ("İstanbul", "istanbul", 0),
        ("STRASSE", "straße", 0),
        ("STRAẞE", "straße", 1),
        ("\u212aitten", "kitten", 1),  # the sign of Kelvin
        ("cat²", "cat", 1),
    ],
)
def test_letters_decide(prompt, word, expected):
    bound = bind_prompt(prompt, {"tom": word})
    chosen = bound.chosen[0]
    assert (bound.seen[0] if chosen is None else len(chosen)) == expected
    assert bound.mentions(0) is bool(expected)
    assert standing(prompt, word) == (chosen, bound.seen[0])


def test_a_placeholder_that_touches_letters_is_refused():
    with pytest.raises(InfusionError, match="<tom> touches other letters in the prompt; put spaces around it"):
        bind_prompt("three <tom>s", {"tom": "cat"})
    assert bind_prompt("一只<tom>在看熊猫", {"tom": "猫"}).chosen == ((0,),)


def test_a_placeholder_may_hold_accents_typed_either_way():
    for name, typed in (("café", "cafe\u0301"), ("cafe\u0301", "CAFÉ"), ("แม่", "แม่")):
        assert bind_prompt(f"a <{typed}>", {name: "cat"}).text == "a cat"
    assert bind_prompt("a <lora:x:1> <my cat>", {"tom": "cat"}).text == "a <lora:x:1> <my cat>"


def test_a_placeholder_may_hold_whatever_a_loaded_concept_is_called():
    bound = bind_prompt("a cat, <My cat (2)> and < 3 >", {"my cat (2)": "cat", "tom": "dog"})
    assert bound.text == "a cat, cat and < 3 >"
    assert bound.chosen[0] == (1,)


def test_an_occurrence_is_never_taken_for_another():
    """The tokenizer sees one more than the prompt's letters show, so nobody knows which is which."""
    assert spans([range(0, 1), range(2, 3)], None, "cat", 75, 77) == ((1,), (3,))
    with pytest.raises(InfusionError, match="put spaces around it"):
        spans([range(0, 1), range(2, 3)], (0,), "cat", 75, 77, seen=1)


def test_a_prompt_that_is_not_unicode_is_refused():
    with pytest.raises(InfusionError, match=r"holds '\\udcff', which is no letter of Unicode"):
        bind_prompt("a \udcff", {})


def test_part_of_a_longer_word_of_another_concept_is_not_free():
    words = {"teddy": "teddy bear", "b": "bear"}
    assert bind_prompt("<teddy> and a bear", words).chosen == ((0,), (1,))
    assert bind_prompt("a teddy bear", words).chosen == (None, ())
    assert bind_prompt("a teddy bear and a bear", words).chosen == (None, (1,))
    assert bind_prompt("<b>, a teddy bear", words).chosen == (None, (0,))
    assert bind_prompt("<b> cub", {"b": "bear", "cub": "bear cub"}).chosen == ((0,), ())
    assert bind_prompt("teddy <b>", words).chosen == ((), (0,))  # the placeholder's, whatever stands before it


def test_a_placeholder_is_read_exactly_where_case_alone_tells_names_apart():
    words = {"Cat": "cat", "cat": "dog"}
    assert bind_prompt("<Cat>", words).text == "cat"
    assert bind_prompt("<cat>", words).text == "dog"
    with pytest.raises(InfusionError, match="names <CAT>, which could be <Cat> or <cat>; write it exactly"):
        bind_prompt("<CAT>", words)


def test_tokens_that_spell_what_letters_do_not_say_are_nobodys():
    assert pick([range(1, 3)], None, "model3", 0) == []
    assert pick([range(1, 3)], None, "model3", 1) == [range(1, 3)]

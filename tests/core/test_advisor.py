"""Which pair is suggested, and the overlap of attention that collapse is measured by."""

from __future__ import annotations

import pytest
import torch

from infusion_core.advisor import BASE, COLLAPSED, Judged, Setup, advise, trials, watched_words
from infusion_core.collapse import overlap
from infusion_core.errors import InfusionError
from infusion_core.readers import WordMaps

ALONE = [
    Judged(Setup(BASE), 0.2, 0.9, 0.0),
    Judged(Setup("one"), 0.4, 0.88, 0.001),
    Judged(Setup("two"), 0.8, 0.7, 0.02),
    Judged(Setup("three"), 0.7, 0.5, 0.05),
]


def unjudged(collapse):
    return [Judged(Setup(BASE), None, None, 0.0), Judged(Setup("one"), None, None, collapse)]


def test_the_best_subject_is_guided_by_the_base_and_by_the_epoch_that_obeys_best():
    found = list(trials(ALONE))
    assert {(setup.late, setup.early) for setup in found} == {("two", BASE), ("two", "one")}
    assert [setup.alpha for setup in found if setup.early == BASE] == [0.01, 0.02, 0.04]
    obedient_too = [*ALONE[:2], Judged(Setup("two"), 0.8, 0.95), ALONE[3]]
    assert {setup.early for setup in trials(obedient_too)} == {BASE}  # nothing guides itself
    assert {(setup.late, setup.early) for setup in trials(unjudged(0.5))} == {("one", BASE)}


def test_subject_and_prompt_count_alike():
    good, strong = (
        Judged(Setup("two", BASE, alpha), *scores) for alpha, *scores in ((0.02, 0.75, 0.9), (0.04, 0.3, 0.9))
    )
    advice = advise(ALONE, [strong, good])
    assert advice.setup == good.setup
    assert advice.reason == "better in likeness and prompt together than the best epoch alone (two)"
    poor = Judged(Setup("two", BASE, 0.02), 0.5, 0.6)
    alone = advise(ALONE, [poor])
    assert alone.setup == Setup("two")
    assert alone.reason == "no guidance that was tried is better than this epoch alone"
    flat = [
        Judged(one.setup, one.subject, 0.5, one.collapse) for one in ALONE
    ]  # where all obey alike, likeness decides
    assert advise(flat, []).setup == Setup("two")


def test_without_scores_collapse_decides():
    assert advise(unjudged(COLLAPSED / 2), []).setup == Setup("one")
    advice = advise(unjudged(3 * COLLAPSED), [])
    assert advice.setup == Setup("one", BASE, 0.02)
    assert advice.reason == "its attention has collapsed by 0.030; likeness was not judged"
    assert advice.setup.title == "one guided by base, alpha 0.02"


def maps_of(**maps):
    found = WordMaps(tuple(maps))
    for word, values in maps.items():
        found.add(word, torch.tensor(values, dtype=torch.float32).reshape(len(values), -1))
    return found


def test_overlap_is_what_two_distributions_share():
    corner, half, flat = (
        [[1.0, 0, 0, 0], [0, 0, 0, 1.0]],
        [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]],
        [[0.25] * 4, [0.25] * 4],
    )
    maps = maps_of(cat=corner, sky=half, sea=[[0.3, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.3]], fog=flat)
    torch.testing.assert_close(overlap(maps, "cat", ["cat"], 2, 2), torch.ones(2))
    torch.testing.assert_close(overlap(maps, "cat", ["sky"], 2, 2), torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(overlap(maps, "cat", ["sea"], 2, 2), torch.ones(2))  # above its lowest point
    torch.testing.assert_close(overlap(maps, "cat", ["sky", "sea"], 2, 2), torch.tensor([0.75, 0.5]))
    torch.testing.assert_close(overlap(maps, "cat", ["fog"], 2, 2), torch.zeros(2))  # it attends nowhere in particular


def test_a_word_without_a_map_is_named():
    with pytest.raises(InfusionError, match="the word 'dog' has no attention map; name words that the prompt holds"):
        overlap(maps_of(cat=[[1.0, 0, 0, 0]]), "cat", ["dog"], 2, 2)


def test_a_word_is_watched_once_whatever_its_case_and_the_subject_is_not_its_own_company():
    assert watched_words("A Big {} and a big tree", "sks circle") == ("circle", ["big", "tree"])
    assert watched_words("a {} beside a Circle, red", "sks circle") == ("circle", ["beside", "red"])

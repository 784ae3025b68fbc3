"""What a request may be, and that one which cannot be drawn spoils no other."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from infusion_cluster import artist as module
from infusion_cluster.artist import Artist
from infusion_cluster.asked import LIMITS, Asked, Limits, read_asked
from infusion_core.denoiser import Conditioning
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.errors import InfusionError
from infusion_core.library import ConceptLibrary
from infusion_core.residuals import zero_residual


def test_a_request_is_read():
    told = {"prompt": "a cat", "concepts": ["tom", {"name": "rex", "strength": 2}], "seed": 2**64 - 1, "negative": "x"}
    assert read_asked(json.dumps(told).encode(), LIMITS) == Asked("a cat", {"tom": 1.0, "rex": 2}, 2**64 - 1, "x")
    assert read_asked(b'{"prompt": ""}', LIMITS) == Asked("", {})


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[" * 9000, "the body is not JSON"),
        (b'["a cat"]', "the body is no object"),
        (b"{}", "there is no 'prompt'; say what to draw"),
        (b'{"prompt": "a", "steps": 9}', "unknown key 'steps'; there are prompt, concepts, seed, negative"),
        (b'{"prompt": 3}', "'prompt' must be text, got 3"),
        (b'{"prompt": "a", "negative": null}', "'negative' must be text, got None"),
        (b'{"prompt": "aaaaaa"}', "'prompt' has 6 letters, 5 are allowed"),
        (b'{"prompt": "\\ud800"}', "'prompt' holds half a letter"),
        (b'{"prompt": "a", "seed": -1}', "'seed' must be a whole number from 0 to 18446744073709551615, got -1"),
        (b'{"prompt": "a", "seed": 18446744073709551616}', "'seed' must be a whole number"),
        (b'{"prompt": "a", "seed": 1.0}', "'seed' must be a whole number"),
        (b'{"prompt": "a", "seed": true}', "'seed' must be a whole number"),
        (b'{"prompt": "a", "concepts": "tom"}', "'concepts' must be a list of names"),
        (b'{"prompt": "a", "concepts": ["a", "b", "c"]}', "3 concepts are asked for, 2 are allowed"),
        (b'{"prompt": "a", "concepts": ["a", "a"]}', "the concept 'a' is asked for twice"),
        (b'{"prompt": "a", "concepts": [3]}', "a concept must be a name or"),
        (b'{"prompt": "a", "concepts": [{"strength": 1}]}', "a concept must be a name or"),
        (b'{"prompt": "a", "concepts": [{"name": "a", "file": "b"}]}', "a concept must be a name or"),
        (b'{"prompt": "a", "concepts": [{"name": "a", "strength": "1"}]}', "the strength of 'a' must be a number"),
        (b'{"prompt": "a", "concepts": [{"name": "a", "strength": true}]}', "the strength of 'a' must be a number"),
        (b'{"prompt": "a", "concepts": [{"name": "a", "strength": 1%s}]}' % (b"0" * 400), "of 'a' is too large; 1 is"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(body, why):
    with pytest.raises(InfusionError) as error:
        read_asked(body, Limits(prompt=5, concepts=2))
    assert why in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture(scope="module")
def artist():
    model = load_model("tinyworld", "cpu")
    library = ConceptLibrary.of([("sun", zero_residual(model.denoiser.base, "circle"))])
    return Artist(model, library, SampleSettings(2, 4.0))


def test_strengths_and_words_that_change_nothing(artist):
    with pytest.raises(InfusionError, match="the strength of 'sun' must be a number up to 1000, got nan"):
        artist.wish(read_asked(b'{"prompt": "a circle", "concepts": [{"name": "sun", "strength": NaN}]}', LIMITS))
    assert artist.wish(Asked("a big circle", {"sun": 1.0}))[1] == ""
    note = artist.wish(Asked("a big square", {"sun": 1.0}))[1]
    assert note == "the prompt does not hold 'circle', so 'sun' changes nothing"


def test_what_cannot_be_drawn_spoils_no_other(artist):
    good, other = (artist.wish(Asked(prompt, {}))[0] for prompt in ("a big circle", "a small square"))
    misfit = replace(good.picture, negative=Conditioning(torch.zeros(1, 77, 3)))
    drawn = artist.draw([good, replace(good, picture=misfit), other])
    assert [one.png is not None for one in drawn] == [True, False, True]
    assert len(drawn[1].why.splitlines()) == 1
    assert drawn[0] == artist.draw([good])[0]
    assert drawn[2] == artist.draw([other])[0]


def test_texts_of_odd_lengths_make_no_batch_enormous(artist, monkeypatch):
    """4, 5, 6, 7 and 1 chunks, of which one batch would make 420; each picture is the one that is drawn alone."""
    words = [75 * chunks - 5 for chunks in (4, 5, 6, 7, 1)]
    wishes = [artist.wish(Asked(" ".join(["a"] * count), {}, seed))[0] for seed, count in enumerate(words)]
    lengths = [wish.picture.prompt.conditioning.context.shape[1] // 77 for wish in wishes]
    assert lengths == [4, 5, 6, 7, 1]
    batches = []
    monkeypatch.setattr(module, "draw_each", lambda _, some, *__: batches.append(some) or [w.seed for w in some])
    monkeypatch.setattr(module, "_png", lambda seed: seed)
    assert [drawn.png for drawn in artist.draw(wishes)] == [0, 1, 2, 3, 4]
    for batch in batches:
        own = [lengths[wish.seed] for wish in batch]
        assert math.lcm(*own) <= 2 * max(own)
    assert len(batches) == 3  # 7 and 1, 6 and 4, 5

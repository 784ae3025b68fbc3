"""What words receive, against softmax written out; and the grid that places of a layer form."""

from __future__ import annotations

import copy

import pytest
import torch

from infusion_core.attention import Plan
from infusion_core.readers import WordMaps, WordReader, attention_to, grid_of
from infusion_core.sites import Site

from . import explicit
from .toy import ToyDenoiser, latents, prompts


def test_words_receive_what_the_maps_of_every_layer_say():
    denoiser, noised, sigma = ToyDenoiser(), latents(3), torch.tensor([0.3, 2.0, 9.0])
    text = prompts()[0].conditioning.repeat(3)
    found = WordMaps(("cat", "hat"))
    reader = WordReader(slice(1, 3), {"cat": [2], "hat": [0, 4]}, found)
    denoiser.predict(noised, sigma, text, Plan(readers=[reader]))
    _, maps = explicit.predict(denoiser, noised.double(), sigma.double(), text.context.double())
    for word, positions in (("cat", [2]), ("hat", [0, 4])):
        wanted = sum(m[1:, :, :, positions].sum(-1).mean(1) for m in maps)  # (2, N), layers added up
        torch.testing.assert_close(found.sums[word, 4].double(), wanted, rtol=1e-4, atol=1e-5)
        assert found.counts[word, 4] == 3
        mean = found.mean(word, 0, 2, 2)
        torch.testing.assert_close(mean.double(), (wanted / 3).reshape(2, 2, 2), rtol=1e-4, atol=1e-5)


def test_rows_take_the_texts_in_turn():
    """A row whose text lacks a word that another's has pays it no attention."""
    query, key = torch.randn(4, 2, 7, 3), torch.randn(4, 2, 5, 3)
    found = WordMaps(("cat", "hat"))
    WordReader(slice(None), ({"cat": [2]}, {"cat": [1], "hat": [0, 4]}), found)(Site("one", "mid", 3), query, key)
    maps = (query @ key.transpose(-1, -2) / 3**0.5).softmax(-1).mean(1)  # (4, 7, 5)
    cats = torch.stack([maps[row, :, place] for row, place in enumerate((2, 1, 2, 1))])
    torch.testing.assert_close(found.sums["cat", 7], cats)
    hats = maps[:, :, [0, 4]].sum(-1) * torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None]
    torch.testing.assert_close(found.sums["hat", 7], hats)


def test_attention_is_shared_out_among_the_tokens():
    query, key = torch.randn(2, 7, 3), torch.randn(2, 5, 3)
    shares = [attention_to(query, key, [t]) for t in range(5)]
    torch.testing.assert_close(sum(shares), torch.ones(7))


def test_maps_of_several_sizes_weigh_alike():
    maps = WordMaps(("cat",))
    maps.add("cat", torch.full((1, 4), 1.0))
    maps.add("cat", torch.full((1, 4), 3.0))
    maps.add("cat", torch.full((1, 16), 6.0))
    assert maps.sizes(8, 8) == [2, 4]
    assert maps.mean("cat", 0, 8, 8).unique().tolist() == [4.0]  # (2 + 6) / 2
    assert maps.mean("cat", 2, 8, 8).unique().tolist() == [2.0]
    assert maps.mean("cat", 4, 8, 8).shape == (1, 8, 8)
    assert maps.mean("cat", 3, 8, 8) is None
    assert maps.mean("hat", 0, 8, 8) is None
    maps.add("cat", torch.full((2, 4), 5.0))  # another batch begins anew
    assert maps.mean("cat", 2, 8, 8).shape == (2, 8, 8)
    assert maps.counts["cat", 4] == 1
    assert maps.mean("cat", 2, 8, 8).unique().tolist() == [5.0]
    assert copy.deepcopy(maps) is maps
    maps.clear()
    assert maps.sizes(8, 8) == []
    assert maps.counts == {}


def test_a_map_is_enlarged_smoothly():
    maps = WordMaps(("cat",))
    maps.add("cat", torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
    assert maps.mean("cat", 0, 4, 4)[0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_a_map_keeps_its_orientation():
    maps = WordMaps(("cat",))
    maps.add("cat", torch.arange(6.0)[None])
    assert maps.mean("cat", 0, 2, 3)[0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert maps.mean("cat", 0, 3, 2)[0].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@pytest.mark.parametrize(
    ("height", "width", "grids"),
    [
        (512, 512, [(64, 64), (32, 32), (8, 8)]),
        (768, 512, [(96, 64), (24, 16)]),
        (512, 1024, [(64, 128), (8, 16)]),
        (520, 328, [(65, 41), (33, 21)]),
        (8, 8, [(1, 1)]),
    ],
)
def test_grids_are_the_latents_own(height, width, grids):
    for grid in grids:
        assert grid_of(grid[0] * grid[1], height, width) == grid

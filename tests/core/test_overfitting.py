"""The overfitting indicator against APT's formula by hand, and photos shown elsewhere on a black canvas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from infusion_core.errors import InfusionError
from infusion_core.noise import seeded
from infusion_core.training.augmentation import Augmentation, Variants, chosen_variants, variants_of
from infusion_core.training.overfitting import RESTRAINED, Indicator, Restraint, checked_level

EDGE = 64


def by_hand(pairs, rate, temperature):
    """Gamma of one bin after (reference, trained) losses."""
    (ref, own), *rest = pairs
    for r, o in rest:
        ref, own = (1 - rate) * ref + rate * r, (1 - rate) * own + rate * o
    return min(max(1 - math.exp(-temperature * (ref - own)), 0), 1)


def test_gamma_is_the_papers_formula_bin_by_bin():
    indicator = Indicator(Restraint(bins=4, rate=0.1, temperature=10.0), 1000)
    assert indicator.gamma.tolist() == [0, 0, 0, 0]
    seen = {0: [(0.5, 0.4), (0.6, 0.45), (0.3, 0.31)], 1: [(0.2, 0.1)], 3: [(0.1, 0.3), (0.1, 0.2)]}
    times = torch.tensor([0, 249, 250, 999])
    indicator.update(times, torch.tensor([0.5, 0.6, 0.2, 0.1]), torch.tensor([0.4, 0.45, 0.1, 0.3]))
    indicator.update(torch.tensor([800, 100]), torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.31]))
    expected = [by_hand(seen[b], 0.1, 10.0) if b in seen else 0.0 for b in range(4)]
    assert expected[3] == 0 < expected[1] < 1  # a model that errs more than the frozen one is not overfitted
    torch.testing.assert_close(indicator.gamma, torch.tensor(expected))
    torch.testing.assert_close(indicator.at(torch.tensor([300, 10])), torch.tensor([expected[1], expected[0]]))


def test_only_what_is_asked_for_follows_from_gamma():
    times = torch.tensor([0, 999])
    for restraint in (Restraint(measure=True), Restraint(augment=True), Restraint(reweight=True)):
        assert restraint.measures
        indicator = Indicator(replace(restraint, bins=2, most_augmented=1.0, temperature=1e6), 1000)
        indicator.update(torch.tensor([0]), torch.tensor([1.0]), torch.tensor([0.0]))
        assert indicator.at(times).tolist() == [1, 0]
        assert indicator.weights(times).tolist() == ([0, 1] if restraint.reweight else [1, 1])
        chosen = indicator.variants(times, 3, seeded(0))
        assert (chosen > 0).tolist() == ([True, False] if restraint.augment else [False, False])
    assert not Restraint().measures


def test_an_indicator_goes_on_from_its_state():
    one, other = Indicator(Restraint(bins=2), 1000), Indicator(Restraint(bins=2), 1000)
    one.update(torch.tensor([0, 600, 600]), torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0.3, 0.399, 0.5]))
    other.restore(one.state())
    for indicator in (one, other):
        indicator.update(torch.tensor([0, 600]), torch.tensor([0.2, 0.2]), torch.tensor([0.199, 0.21]))
    assert torch.equal(one.gamma, other.gamma)
    assert one.gamma[0] > 0
    for wrong in (one.state(), {}):
        with pytest.raises(InfusionError, match="other bins"):
            Indicator(Restraint(bins=3), 1000).restore(wrong)


@pytest.mark.parametrize(
    "wrong", [{"bins": 0}, {"rate": 0.0}, {"rate": 1.5}, {"temperature": 0.0}, {"most_augmented": 2.0}]
)
def test_numbers_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(InfusionError, match=name):
        Restraint(**wrong)


def places(edge=EDGE):
    """A picture whose red and green say where a pixel is, from the middle, in px; blue is even."""
    line = torch.arange(edge) + 0.5 - edge / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x / edge + 0.5, y / edge + 0.5, torch.full_like(x, 0.7)])


def fitted(picture, shown):
    """The affine map from places on the canvas to places in the photo: a matrix, a shift and the largest residual."""
    edge = picture.shape[-1]
    inside = shown[0] > 0.5
    # The photo's border is blurred when it is made smaller; look at what is well inside of it.
    near = (picture[:2] - 0.5).abs().amax(0) < 0.4
    y, x = torch.nonzero(inside & near, as_tuple=True)
    ones = torch.ones(len(x), dtype=torch.float64)
    canvas = torch.stack([x + 0.5 - edge / 2, y + 0.5 - edge / 2, ones], 1).double()
    photo = ((picture[:2, y, x] - 0.5) * edge).T.double()
    solved = torch.linalg.lstsq(canvas, photo).solution  # (3, 2)
    return solved[:2].T, solved[2], (canvas @ solved - photo).abs().max()


def test_variants_are_the_photo_made_smaller_and_turned_in_the_middle_of_black():
    made = variants_of(places()[None].repeat(2, 1, 1, 1), 12, seed=3)
    assert made.pictures.shape == (2, 13, 3, EDGE, EDGE)
    assert torch.equal(made.pictures[:, 0], places()[None].repeat(2, 1, 1, 1))
    assert (made.shown[:, 0] == 1).all()
    factors, angles = [], []
    for row in range(2):
        for picture, shown in zip(made.pictures[row, 1:], made.shown[row, 1:], strict=True):
            matrix, shift, residual = fitted(picture, shown)
            factor = float(torch.linalg.det(matrix)) ** 0.5
            turn = matrix / factor
            torch.testing.assert_close(turn @ turn.T, torch.eye(2, dtype=torch.float64), atol=0.03, rtol=0)
            assert residual < 0.7
            assert shift.abs().max() < 0.7
            assert factor * 1.02 >= 1
            assert factor <= 3.1
            factors.append(factor)
            angles.append(math.degrees(math.atan2(turn[0, 1], turn[0, 0])))
            assert (picture[:, shown[0] < 0.5] == 0).all()
            assert abs(float(shown.mean()) - 1 / factor**2) < 0.12
    assert max(map(abs, angles)) <= 15.5
    assert max(factors) - min(factors) > 1
    assert max(angles) - min(angles) > 15
    assert len({*factors}) == len(factors)  # of each photo its own
    again = variants_of(places()[None].repeat(2, 1, 1, 1), 12, seed=3)
    assert torch.equal(again.pictures, made.pictures)


def test_a_canvas_of_the_photos_own_edge():
    """The same places as on black; around them the border's colours go on, and have no weight either."""
    photo = places()[None]
    how = Augmentation(2.0, 0.0, "edge")
    made, black = (variants_of(photo, 5, 3, None, replace(how, canvas=canvas)) for canvas in ("edge", "black"))
    assert torch.equal(made.shown, black.shown)
    inside = made.shown.expand_as(made.pictures) > 0.5
    assert torch.allclose(made.pictures[inside], black.pictures[inside], atol=1e-6)
    bordered = 0
    for picture, shown in zip(made.pictures[0, 1:], made.shown[0, 1:, 0] > 0.5, strict=True):
        columns = shown.any(0).nonzero().flatten()
        first, last = int(columns.min()), int(columns.max())
        bordered += first > 0
        for column, border in ((0, first), (EDGE - 1, last)):
            assert torch.allclose(picture[0, :, column], picture[0, :, border], atol=0.03)
        assert 1 <= EDGE / len(columns) < 2.3
    assert bordered >= 3


def test_a_models_own_augmentation_is_taken_where_none_is_chosen():
    own, chosen = Augmentation(1.4, 0.0, "edge"), Augmentation(2.0)
    assert RESTRAINED.on(75.0, own) == replace(RESTRAINED, temperature=75.0, augmentation=own)
    kept = replace(RESTRAINED, temperature=5.0, augmentation=chosen)
    assert kept.on(75.0, own) == kept
    assert RESTRAINED.on(75.0).augmentation == Augmentation(3.0, 15.0, "black")


def test_the_canvas_has_no_weight_in_latents():
    shown = torch.ones(1, 2, 1, 16, 16)
    shown[0, 1, :, :, :6] = 0
    weights = Variants(torch.zeros(1, 2, 3, 16, 16), shown, None).weights(4, 4)
    assert weights.shape == (1, 2, 1, 4, 4)
    assert (weights[0, 0] == 1).all()
    assert (weights[0, 1, 0] == torch.tensor([0.0, 0.0, 2.0, 2.0])).all()  # a cell half on the canvas has none either


def test_masks_move_with_their_photos():
    photo = places()[None]
    masks = (photo[:, :1] > 0.5).float()  # the right half
    made = variants_of(photo, 6, seed=3, masks=masks)
    plain = variants_of(photo, 6, seed=3)
    assert torch.equal(made.pictures, plain.pictures)
    assert torch.equal(made.masks[:, 0], masks)
    assert plain.masks is None
    sure = (made.pictures[:, :, :1] - 0.5).abs() > 0.03  # beside the edge of the mask
    expected = (made.pictures[:, :, :1] > 0.5) & (made.shown > 0.5)
    agree = ((made.masks > 0.5) == expected)[sure]
    assert agree.float().mean() > 0.99
    weights = made.weights(8, 8)
    assert torch.allclose(weights.mean((-1, -2)), torch.ones(1, 7, 1))
    assert (weights[0, 0, 0, :, 4:] == 2).all()
    assert (weights[0, 0, 0, :, :4] == 0).all()
    assert (variants_of(photo, 1, 0, masks=masks * 0).weights(8, 8) == 0).all()


def test_photos_are_replaced_as_often_as_their_chance_says():
    chance = torch.tensor([0.0, 1.0, 0.3]).repeat(2000)
    chosen = chosen_variants(chance, 5, seeded(1)).reshape(2000, 3)
    assert (chosen[:, 0] == 0).all()
    assert {*chosen[:, 1].tolist()} == {1, 2, 3, 4, 5}
    assert abs((chosen[:, 2] > 0).float().mean() - 0.3) < 0.04
    assert (chosen_variants(torch.ones(4), 0, seeded(1)) == 0).all()


def test_a_zoom_below_one_is_refused():
    with pytest.raises(InfusionError, match="at least 1"):
        Augmentation(zoom=0.5)


def test_training_ends_where_the_mean_over_noise_reaches_the_level():
    indicator = Indicator(Restraint(measure=True, bins=2, temperature=10.0), 1000)
    assert not indicator.reached(0.0)
    indicator.update(torch.tensor([100]), torch.tensor([1.0]), torch.tensor([0.9]))
    half = (1 - math.exp(-1)) / 2  # the other bin has seen nothing and says 0
    assert indicator.overall == pytest.approx(half)
    assert indicator.reached(half - 0.01)
    assert not indicator.reached(half + 0.01)
    assert not indicator.reached(0.0)
    assert checked_level(0.5, True) == 0.5
    assert checked_level(0.0, False) == 0
    with pytest.raises(InfusionError, match="0 \\(never\\) to 1"):
        checked_level(1.1, True)
    with pytest.raises(InfusionError, match="not measured"):
        checked_level(0.5, False)

"""Improved precision and recall against the definition, pair by pair."""

from __future__ import annotations

import pytest
import torch

from infusion_core.errors import InfusionError
from infusion_core.metrics.coverage import coverage


def by_hand(reference, samples, k):
    def inside(point, others):
        for other in others:
            near = sorted(float((other - third).norm()) for third in others if third is not other)
            if float((point - other).norm()) <= near[k - 1]:
                return True
        return False

    a, b = list(reference.flatten(1).double()), list(samples.flatten(1).double())
    return sum(inside(p, a) for p in b) / len(b), sum(inside(p, b) for p in a) / len(a)


@pytest.mark.parametrize("k", [1, 3])
def test_each_sample_and_each_reference_is_counted_as_defined(k):
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(20, 2, 2, generator=generator)
    samples = torch.randn(15, 2, 2, generator=generator) + 1.2
    found = coverage(reference, samples, k)
    assert (found.precision, found.recall) == pytest.approx(by_hand(reference, samples, k))
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_one_point_of_many_is_precise_and_recalls_little():
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(50, 4, generator=generator)
    collapsed = reference[:1] + torch.randn(50, 4, generator=generator) * 1e-3
    found = coverage(reference, collapsed)
    assert found.precision == 1
    assert found.recall < 0.1
    far = coverage(reference, reference + 100)
    assert (far.precision, far.recall) == (0, 0)
    same = coverage(reference, reference)
    assert (same.precision, same.recall) == (1, 1)


def test_too_few_pictures_are_refused():
    with pytest.raises(InfusionError, match="more than 3"):
        coverage(torch.randn(3, 2), torch.randn(9, 2))

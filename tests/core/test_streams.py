"""The two streams on the toy network, against attention maps written out."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from infusion_core.injection import inject
from infusion_core.streams import base_then_concept, concept_stream

from . import explicit
from .toy import ToyDenoiser, concept, latents, loaded, prompts

STRENGTH = 0.7


def setup(layout):
    denoiser, noised, sigma = ToyDenoiser(), latents(), torch.tensor([0.5, 9.0])
    text = prompts()[0].conditioning.repeat(2)
    residual = concept(denoiser, layout)
    injections = [inject(loaded(residual, STRENGTH), range(2), [((2,),)] * 2, [0, 0])]
    place_of = {s.name: s.block if layout == "block" else s.name for s in denoiser.base.sites}
    by_site = {site: STRENGTH * residual.tensors[place][0, 0].double() for site, place in place_of.items()}
    additions = [(row, 2, by_site) for row in range(2)]
    slow = partial(explicit.predict, denoiser, noised.double(), sigma.double(), text.context.double())
    return partial(denoiser.predict, noised, sigma, text), injections, slow, additions


@pytest.mark.parametrize("layout", ["block", "layer", "value"])
def test_the_concept_stream_attends_as_the_base_stream(layout):
    predict, injections, slow, additions = setup(layout)
    base, maps = slow()
    replaced = slow(additions, layout == "value", maps)[0]
    own = slow(additions, layout == "value")[0]
    assert (replaced - own).abs().max() > 0.01 * own.abs().max()  # the toy can tell them apart
    torch.testing.assert_close(concept_stream(predict, injections, True).double(), replaced, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(concept_stream(predict, injections, False).double(), own, rtol=1e-4, atol=1e-5)
    first, second = base_then_concept(predict, predict, injections)
    torch.testing.assert_close(first.double(), base, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second.double(), replaced, rtol=1e-4, atol=1e-5)


def test_without_residuals_one_pass_is_made():
    plans = []

    def predict(plan):
        plans.append(plan)
        return torch.zeros(1)

    concept_stream(predict, [], True)
    assert [plan.empty for plan in plans] == [True]


def test_rows_of_the_base_pass_may_be_left_out():
    predict, injections, _, _ = setup("layer")
    denoiser, text = ToyDenoiser(), prompts()[0].conditioning.repeat(3)
    more = partial(denoiser.predict, torch.cat([latents(1) * 5, latents()]), torch.tensor([3.0, 0.5, 9.0]), text)
    _, out = base_then_concept(more, predict, injections, slice(1, None))
    torch.testing.assert_close(out, concept_stream(predict, injections, True))


def test_no_gradient_flows_through_the_base_pass():
    predict, injections, _, _ = setup("layer")
    predict.func.__self__.requires_grad_()  # without residuals nothing else could flow through
    base, out = base_then_concept(predict, predict, injections)
    assert not base.requires_grad
    assert out.requires_grad

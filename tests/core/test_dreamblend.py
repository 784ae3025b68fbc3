"""Distances of attention maps and their gradients against maps written out; settings; mixed sources."""

from __future__ import annotations

import pytest
import torch

from infusion_core.attention import Plan, SuppliedMaps
from infusion_core.dreamblend import BlendSettings, MapDistance, map_distance, map_gradient, step_down
from infusion_core.errors import InfusionError
from infusion_core.readers import Recorder
from infusion_core.schedule import Window
from infusion_core.sites import Site

from .test_attention import HEADS, ROWS, SITE, close, explicit, run, setup

SHAPE = (2, 3, 5, 4)  # rows, heads, queries, head width
TOKENS = 6


def query_keys(dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    queries = [torch.randn(SHAPE, generator=g, dtype=torch.float64).to(dtype) for _ in range(2)]
    keys = [torch.randn(2, 3, TOKENS, 4, generator=g, dtype=torch.float64).to(dtype) for _ in range(2)]
    return queries[0], keys[0], queries[1], keys[1]


def softmax_map(query, key):
    """One head's map of one row, written out."""
    scores = torch.stack([torch.stack([(q * k).sum() / 2.0 for k in key]) for q in query])
    weights = (scores - scores.max(1, keepdim=True).values).exp()
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("distance", ["absolute", "squared"])
def test_the_distance_is_the_mean_difference_of_maps_written_out(distance):
    query, key, other_query, other_key = query_keys()
    expected = []
    for row in range(2):
        apart = torch.stack(
            [
                softmax_map(query[row, h], key[row, h]) - softmax_map(other_query[row, h], other_key[row, h])
                for h in range(3)
            ]
        )
        expected.append((apart.abs() if distance == "absolute" else apart**2).mean())
    found = map_distance(query, key, other_query, other_key, distance)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)
    single = map_distance(*(x.float() for x in (query, key, other_query, other_key)), distance=distance)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=1e-5, atol=0)
    half = map_distance(*(x.half() for x in (query, key, other_query, other_key)), distance=distance)
    assert half.dtype == torch.float32  # half precision would lose the mean of so many small numbers
    torch.testing.assert_close(half.double(), found, rtol=2e-2, atol=0)


def test_maps_are_precise_in_mixed_precision_too():
    inputs = [x.float() for x in query_keys()]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = map_distance(*inputs, distance="absolute")
    assert torch.equal(mixed, map_distance(*inputs, distance="absolute"))


@pytest.mark.parametrize("distance", ["absolute", "squared"])
def test_its_gradient_is_that_of_finite_differences(distance):
    query, key, other_query, other_key = query_keys()
    for wanted in ((True, True), (True, False), (False, True)):  # a query, a key or both may be learned through
        inputs = [x.clone().requires_grad_(w) for x, w in zip((query, key), wanted, strict=True)]
        assert torch.autograd.gradcheck(lambda q, k: map_distance(q, k, other_query, other_key, distance), inputs)


def test_a_row_of_the_gradient_depends_on_that_row_alone():
    query, key, other_query, other_key = query_keys()
    query.requires_grad_()
    (whole,) = torch.autograd.grad(map_distance(query, key, other_query, other_key, "absolute").sum(), query)
    one = query[1:].detach().clone().requires_grad_()
    (alone,) = torch.autograd.grad(map_distance(one, key[1:], other_query[1:], other_key[1:], "absolute").sum(), one)
    assert torch.equal(whole[1:], alone)


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 4e-3)])
def test_what_rounding_explains_is_no_difference(dtype, noise):
    query, key, *_ = query_keys()
    again = (query * (1 + noise * torch.sign(torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))))).to(dtype)
    query, key = query.to(dtype).requires_grad_(), key.to(dtype)
    found = map_distance(query, key, again, key, "absolute")
    (gradient,) = torch.autograd.grad(found.sum(), query)
    assert not found.any()
    assert not gradient.any()


def test_maps_of_another_size_are_refused():
    query, key, other_query, other_key = query_keys()
    for others in ((other_query[:, :, :4], other_key), (other_query, other_key[:, :, :5])):
        with pytest.raises(
            InfusionError, match=r"maps differ in size \(2 x 3 x 5 x 6 and .*; use prompts of equal length"
        ):
            map_distance(query, key, *others, "absolute")


def test_the_reader_sums_over_the_sites_that_have_maps():
    query, key, other_query, other_key = query_keys()
    one, two, none = (Site(f"input.{i}.0", "down.0", 12) for i in range(3))
    reader = MapDistance({one.name: (other_query, other_key), two.name: (other_query * 2, other_key)})
    for site in (one, two, none):
        reader(site, query, key)
    expected = map_distance(query, key, other_query, other_key, "absolute")
    expected = expected + map_distance(query, key, other_query * 2, other_key, "absolute")
    torch.testing.assert_close(reader.total, expected)


def test_a_step_goes_down_the_gradient():
    latent = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    slope = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-6, 1e3]).reshape(
        -1, 1, 1, 1
    )

    def linear(x):
        return (x * slope).sum((1, 2, 3))

    torch.testing.assert_close(map_gradient(latent, linear), slope)
    torch.testing.assert_close(step_down(latent, linear, 0.5, normalise=False), latent - 0.5 * slope)
    moved = latent - step_down(latent, linear, 0.5, normalise=True)
    torch.testing.assert_close(moved.square().mean((1, 2, 3)).sqrt(), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(moved[0] / moved[0].norm(), slope[0] / slope[0].norm(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalise", [True, False])
def test_where_there_is_nothing_to_correct_the_latent_stays_as_it_is(normalise):
    latent = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(step_down(latent, lambda x: (x * 0).sum((1, 2, 3)), 3.0, normalise), latent)


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(InfusionError, match="not finite; compute in float32, or use the mode 'replacement'"):
        map_gradient(torch.zeros(1, 1, 2, 2), lambda x: x.sqrt().sum((1, 2, 3)))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_supplied_maps_is_mixed_with_the_passs_own(share):
    project, hidden, context, g = setup()
    other_hidden, other_context = torch.randn(hidden.shape, generator=g), torch.randn(context.shape, generator=g)
    maps = {}
    run(project, other_hidden, other_context, Plan(readers=[Recorder(maps)]))
    out = run(project, hidden, context, Plan(SuppliedMaps(maps), share=share))
    supplied = explicit(project, other_hidden, other_context, context, [])
    close(out, share * supplied + (1 - share) * explicit(project, hidden, context, context, []))


def test_maps_may_be_supplied_for_some_rows_and_some_sites():
    project, hidden, context, g = setup()
    other_hidden, other_context = torch.randn(hidden.shape, generator=g), torch.randn(context.shape, generator=g)
    maps = {}
    run(project, other_hidden, other_context, Plan(readers=[Recorder(maps, slice(1, None))]))
    before = {name: tuple(x.clone() for x in pair) for name, pair in maps.items()}
    out = run(project, hidden, context, Plan(SuppliedMaps(maps, slice(1, None))))
    own = explicit(project, hidden, context, context, [])
    close(out[:1], own[:1])
    close(out[1:], explicit(project, other_hidden, other_context, context, [])[1:])
    close(run(project, hidden, context, Plan(SuppliedMaps({}, slice(1, None)))), own)
    close(run(project, hidden, context, Plan(SuppliedMaps({"elsewhere": maps[SITE.name]}))), own)
    assert all(torch.equal(a, b) for a, b in zip(maps[SITE.name], before[SITE.name], strict=True))
    assert out.shape == (ROWS, hidden.shape[1], HEADS * 4)


SITES = (
    Site("input.1.0", "down.0", 8),
    Site("middle.0.0", "mid", 8),
    Site("output.3.0", "up.1", 8),
    Site("output.30.0", "up.10", 8),
)


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ((), SITES),
        (("up",), SITES[2:]),
        (("up.1",), SITES[2:3]),
        (("mid", "input.1"), SITES[:2]),
        (("output.3.0",), SITES[2:3]),
    ],
)
def test_sites_are_chosen_by_the_names_of_blocks_and_layers(where, chosen):
    assert BlendSettings(where=where).chosen(SITES) == list(chosen)


def test_a_block_that_is_not_there_is_refused_by_name():
    with pytest.raises(InfusionError, match=r"no block or layer 'up\.2'; its blocks are: down\.0, mid, up\.1, up\.10"):
        BlendSettings(where=("up.1", "up.2")).chosen(SITES)


def test_which_steps_are_guided():
    settings = BlendSettings(alpha=0.2, every=2, window=Window(0.25, 0.75))
    assert [i for i in range(8) if settings.guides(i, 8)] == [2, 4]
    assert not any(BlendSettings(alpha=0).guides(i, 8) for i in range(8))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"mode": "both"}, "unknown mode 'both'; choose gradient or replacement"),
        ({"distance": "cubed"}, "unknown distance 'cubed'; choose absolute or squared"),
        ({"alpha": -0.1}, "alpha must be from 0 to 1000 in mode gradient, got -0.1"),
        ({"alpha": float("nan")}, "alpha must be from 0 to 1000 in mode gradient, got nan"),
        ({"alpha": 1.5, "mode": "replacement"}, "alpha must be from 0 to 1 in mode replacement, got 1.5"),
        ({"gradient_steps": 0}, "gradient_steps must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, told):
    with pytest.raises(InfusionError) as error:
        BlendSettings(**wrong)
    assert str(error.value) == told

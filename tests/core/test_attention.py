"""The fused path against eq. 7 written out: explicit maps, explicit sum over tokens."""

from __future__ import annotations

import pytest
import torch

from infusion_core.attention import MapsOfRows, OwnMaps, Plan, SuppliedMaps, cross_attention
from infusion_core.concepts import LoadedConcept
from infusion_core.errors import InfusionError
from infusion_core.injection import inject
from infusion_core.readers import Recorder
from infusion_core.residuals import Base, zero_residual
from infusion_core.sites import Site

SITE = Site("input.1.0", "down.0", 12)
BASE = Base("toy", 10, "epsilon", (SITE,))
ROWS, QUERIES, TOKENS, HEADS = 3, 7, 6, 3


def setup(seed=0):
    g = torch.Generator().manual_seed(seed)
    w = {name: torch.randn(12, 12 if name == "q" else 10, generator=g) for name in "qkv"}
    project = {name: (lambda x, m=m: x @ m.T) for name, m in w.items()}
    hidden = torch.randn(ROWS, QUERIES, 12, generator=g)
    context = torch.randn(ROWS, TOKENS, 10, generator=g)
    return project, hidden, context, g


def explicit(project, query_input, key_context, context, additions):
    """Eq. 7 token by token in float64; `additions`: (row, position, where, vector)."""
    to64 = {n: (lambda x, p=p: p(x.float()).double()) for n, p in project.items()}
    value_in = context.clone()
    for row, position, where, vector in additions:
        if where == "context":
            value_in[row, position] += vector
    q, k, v = to64["q"](query_input), to64["k"](key_context), to64["v"](value_in)
    for row, position, where, vector in additions:
        if where == "value":
            v[row, position] += vector.double()
    out = torch.zeros(len(context), QUERIES, 12, dtype=torch.float64)
    for row in range(len(context)):
        for head in range(HEADS):
            part = slice(head * 4, head * 4 + 4)
            maps = torch.softmax(q[row, :, part] @ k[row, :, part].T / 2.0, dim=-1)  # (N, L)
            for token in range(TOKENS):
                out[row, :, part] += maps[:, token, None] * v[row, token, part]
    return out


def run(project, hidden, context, plan):
    return cross_attention(SITE, hidden, context, project["q"], project["k"], project["v"], HEADS, plan)


def close(actual, expected):
    assert ((actual.double() - expected).abs().max() / expected.abs().max()).item() < 1e-5


@pytest.mark.parametrize("layout", ["block", "layer", "value"])
@pytest.mark.parametrize("concepts", [1, 2, 3])
def test_residuals_with_supplied_maps_match_the_explicit_sum(layout, concepts):
    project, hidden, context, g = setup()
    base_hidden, base_context = torch.randn(ROWS, QUERIES, 12, generator=g), torch.randn(ROWS, TOKENS, 10, generator=g)
    maps = {}
    run(project, base_hidden, base_context, Plan(readers=[Recorder(maps)]))

    injections, additions = [], []
    for index in range(concepts):
        residual = zero_residual(BASE, "w", layout, bins=2, tokens=2)
        for tensor in residual.tensors.values():
            tensor.normal_(generator=g)
        spans = [((1 + index, 2 + index),), ((0, 1), (4, 5)), ()]
        bins, strength = [0, 1, 1], 0.5 + index
        concept = LoadedConcept(f"w{index}", residual, strength * 2, {"down.0": 0.5, "mid": 9.0})
        injections.append(inject(concept, range(ROWS), spans, bins))
        (delta,) = residual.tensors.values()
        where = "value" if layout == "value" else "context"
        for row, occurrences in enumerate(spans):
            for occurrence in occurrences:
                for token, position in enumerate(occurrence):
                    additions.append((row, position, where, strength * delta[bins[row], token]))
    before = context.clone()
    out = run(project, hidden, context, Plan(SuppliedMaps(maps), injections=injections))
    close(out, explicit(project, base_hidden, base_context, context, additions))
    assert torch.equal(context, before)  # the caller's context is never changed


def test_without_a_plan_it_is_plain_attention():
    project, hidden, context, _ = setup()
    close(run(project, hidden, context, Plan()), explicit(project, hidden, context, context, []))


def test_only_the_recorded_rows_are_supplied():
    project, hidden, context, _ = setup()
    maps = {}
    run(project, hidden, context, Plan(readers=[Recorder(maps, slice(1, 2))]))
    out = run(project, torch.zeros(1, QUERIES, 12), context[2:], Plan(SuppliedMaps(maps)))
    close(out, explicit(project, hidden[1:2], context[1:2], context[2:], []))


def test_rows_of_a_batch_take_the_maps_of_other_rows():
    project, hidden, context, _ = setup()
    rows = [0, 2, 0]
    seen = {}
    out = run(project, hidden, context, Plan(MapsOfRows(rows), readers=[Recorder(seen)]))
    close(out, explicit(project, hidden[rows], context[rows], context, []))
    again = run(project, hidden, context, Plan(SuppliedMaps(seen)))  # readers see what the source gave
    torch.testing.assert_close(again, out)


def test_supplied_maps_need_no_projection_of_the_passs_own():
    project, hidden, context, _ = setup()
    maps = {}
    run(project, hidden, context, Plan(readers=[Recorder(maps)]))
    never = {**project, "q": None, "k": None}  # calling either would fail
    close(run(never, hidden, context, Plan(SuppliedMaps(maps))), explicit(project, hidden, context, context, []))


def test_only_the_plan_that_does_nothing_is_empty():
    injection = inject(LoadedConcept("w", zero_residual(BASE, "w")), [0], [((2,),)], [0])
    assert Plan().empty
    assert Plan(OwnMaps()).empty
    for plan in (
        Plan(MapsOfRows([0])),
        Plan(SuppliedMaps({})),
        Plan(readers=[Recorder({})]),
        Plan(injections=[injection]),
    ):
        assert not plan.empty


def test_no_residual_gives_back_the_same_context():
    _, _, context, _ = setup()
    assert Plan().value_input(SITE, context) is context
    elsewhere = zero_residual(Base("toy", 10, "epsilon", (Site("middle.0.0", "mid", 12),)), "w")
    plan = Plan(injections=[inject(LoadedConcept("w", elsewhere), [0], [((2,),)], [0])])
    assert plan.value_input(SITE, context) is context  # the concept has nothing at this site


def test_gradient_reaches_the_residual_at_bound_tokens_only():
    project, hidden, context, _ = setup()
    residual = zero_residual(BASE, "w", "layer", bins=2)
    (delta,) = residual.tensors.values()
    delta.requires_grad_()
    injection = inject(LoadedConcept("w", residual), [0], [((2,),)], [1])
    run(project, hidden, context, Plan(injections=[injection])).square().sum().backward()
    assert delta.grad[1].abs().sum() > 0
    assert delta.grad[0].abs().sum() == 0


def test_an_occurrence_of_another_length_is_refused():
    with pytest.raises(
        InfusionError,
        match=r"here but the concept has 1; it was made with another tokenizer, train it again on this model$",
    ):
        inject(LoadedConcept("w", zero_residual(BASE, "w")), [0], [((2, 3),)], [0])


def test_a_word_that_no_row_holds_adds_nothing_and_lists_must_agree():
    concept, (_, _, context, _) = LoadedConcept("w", zero_residual(BASE, "w")), setup()
    for tensor in concept.residual.tensors.values():
        tensor.fill_(7.0)
    nowhere = inject(concept, [0, 1], [(), ()], [0, 0])
    assert torch.equal(nowhere.add_to(context, SITE), context)
    for rows, spans, bins in (([0], [((2,),)] * 2, [0, 0]), ([0, 1], [((2,),)] * 2, [0])):
        with pytest.raises(ValueError, match="zip"):
            inject(concept, rows, spans, bins)


def test_a_residual_takes_the_precision_of_what_it_is_added_to():
    concept, (_, _, context, _) = LoadedConcept("w", zero_residual(BASE, "w")), setup()
    injection = inject(concept, [0], [((2,),)], [0])
    assert injection.add_to(context.half(), SITE).dtype == torch.float16


def test_parts_share_what_a_word_is_paid():
    """Queries choose among residuals by keys: eq. 7 with the mean of the residuals that a query chooses."""
    project, hidden, context, g = setup()
    residual = zero_residual(BASE, "w", "parts", bins=2, tokens=2, parts=3)
    (numbers,) = residual.tensors.values()
    numbers.normal_(generator=g)
    injection = inject(LoadedConcept("w", residual, 0.7), [0, 2], [((1, 2), (4, 5)), ((0, 3),)], [1, 0])
    out = run(project, hidden, context, Plan(injections=[injection]))
    expected = explicit(project, hidden, context, context, [])
    queries, keys_of_text = project["q"](hidden).double(), project["k"](context).double()
    for row, occurrences, bin_ in ((0, ((1, 2), (4, 5)), 1), (2, ((0, 3),), 0)):
        for token, position in ((t, p) for occurrence in occurrences for t, p in enumerate(occurrence)):
            values, keys = numbers[bin_, token].reshape(2, 3, 10)
            for head in range(HEADS):
                part = slice(head * 4, head * 4 + 4)
                q = queries[row, :, part]
                paid = torch.softmax(q @ keys_of_text[row, :, part].T / 2.0, dim=-1)[:, position]
                shares = torch.softmax(q @ project["k"](keys).double()[:, part].T / 2.0, dim=-1)
                expected[row, :, part] += 0.7 * paid[:, None] * (shares @ project["v"](values).double()[:, part])
    close(out, expected)


def test_one_part_is_a_residual_of_its_block():
    project, hidden, context, g = setup()
    parts, block = zero_residual(BASE, "w", "parts"), zero_residual(BASE, "w")
    parts.tensors["down.0"].normal_(generator=g)
    block.tensors["down.0"].copy_(parts.tensors["down.0"][..., :10])
    one, other = (
        run(project, hidden, context, Plan(injections=[inject(LoadedConcept("w", r), [0], [((2,),)], [0])]))
        for r in (parts, block)
    )
    torch.testing.assert_close(one, other)

"""Concepts in tables: what is in a row, what a site gathers of it, and texts that are said over again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from infusion_core.concepts import LoadedConcept
from infusion_core.denoiser import Conditioning, EncodedPrompt, common_length
from infusion_core.errors import InfusionError
from infusion_core.injection import Aim, inject, inject_table
from infusion_core.library import ConceptLibrary, UnknownConceptError
from infusion_core.residual_file import save_concept
from infusion_core.residual_table import Kind, ResidualTable, tables_of
from infusion_core.residuals import LAYOUTS, zero_residual

from .sd15 import SD15

UP, MIDDLE = SD15.sites_by_name["output.3.0"], SD15.sites_by_name["middle.0.0"]


def concept(seed, layout="block", **options):
    residual = zero_residual(SD15, "cat", layout, **options)
    generator = torch.Generator().manual_seed(seed)
    for tensor in residual.tensors.values():
        tensor.normal_(generator=generator)
    return residual


def test_ten_thousand_concepts_of_a_block_each_are_108_megabytes():
    kind = Kind.of(concept(0))
    assert kind.numbers * 2 == 10_752  # bytes in half precision, the paper's 11 KB
    assert round(10_000 * kind.numbers * 2 / 1e6) == 108


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_is_its_concept(layout):
    residuals = [concept(seed, layout, bins=2, tokens=3) for seed in range(3)]
    table = ResidualTable.of(residuals, "cpu", torch.float32)
    assert table.numbers.shape == (3, residuals[0].parameter_count)
    for index, residual in enumerate(residuals):
        row = table.row(index)
        assert row.keys() == residual.tensors.keys()
        assert all(torch.equal(row[place], tensor) for place, tensor in residual.tensors.items())
        assert row["mid" if layout in ("block", "parts") else "middle.0.0"].data_ptr() >= table.numbers.data_ptr()
        for site in SD15.sites:
            assert torch.equal(table.at(site)[index], residual.at(site))


def test_concepts_of_other_kinds_have_other_tables():
    residuals = [concept(0), concept(1, bins=2), concept(2), concept(3, "layer"), concept(4, "layer", where="up")]
    tables, places = tables_of(residuals, "cpu", torch.float64)
    assert places == [(0, 0), (1, 0), (0, 1), (2, 0), (3, 0)]
    assert tables[0].numbers.dtype == torch.float64
    for residual, (number, row) in zip(residuals, places, strict=True):
        assert torch.equal(tables[number].row(row)[(place := next(iter(residual.tensors)))], residual.tensors[place])
    assert tables[3].at(MIDDLE) is None


def aims():
    """Three concepts in a batch: two in one row, one in two rows and one with its word twice."""
    residuals = [concept(seed, bins=2, tokens=2) for seed in range(3)]
    loaded = [
        LoadedConcept("a", residuals[0], 0.5),
        LoadedConcept("b", residuals[1], 2.0, {"mid": 0.25}),
        LoadedConcept("c", residuals[2], -1.0, {"up.1": 3.0}),
    ]
    named = [(0, 0, ((1, 2),), 0), (1, 0, ((4, 5),), 1), (1, 2, ((0, 1),), 0), (2, 3, ((0, 1), (3, 5)), 1)]
    return loaded, [Aim(loaded[i], i, row, spans, bin_) for i, row, spans, bin_ in named]


@pytest.mark.parametrize("site", [UP, MIDDLE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gather_adds_what_the_concepts_add_one_by_one(site, dtype):
    loaded, aimed = aims()
    target = torch.randn(4, 6, 768, generator=torch.Generator().manual_seed(9)).to(dtype)
    table = ResidualTable.of([c.residual for c in loaded], "cpu", dtype)
    together, one_by_one = inject_table(table, aimed).add_to(target, site), target
    for aim in aimed:
        injection = inject(aim.concept.to("cpu", dtype), [aim.row], [aim.spans], [aim.bin])
        one_by_one = injection.add_to(one_by_one, site)
    assert together.dtype == dtype
    assert torch.equal(together, one_by_one)
    assert torch.equal(together[1], target[1])  # no concept is in this row
    by_hand = target[3, 5] + loaded[2].residual.tensors[site.block][1, 1].to(dtype) * (-3.0 if site is UP else -1.0)
    assert torch.equal(together[3, 5], by_hand)


def test_a_word_of_another_number_of_tokens_is_refused():
    loaded, _ = aims()
    table = ResidualTable.of([c.residual for c in loaded], "cpu", torch.float32)
    with pytest.raises(InfusionError, match="'cat' is 3 tokens here but the concept has 2"):
        inject_table(table, [Aim(loaded[0], 0, 0, ((1, 2, 3),), 0)])


def test_a_text_said_over_again_gives_the_same():
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 4, generator=g, dtype=torch.float64) for n in (7, 5, 5))
    context = torch.cat([key, value], 3).transpose(1, 2).flatten(2)  # (1, 5, 16)
    prompt = EncodedPrompt(Conditioning(context, {"extra": torch.ones(1, 3)}), (((1, 2), (4,)), ()))
    longer = prompt.lengthened(15)
    again = longer.conditioning.context.unflatten(2, (2, 8)).transpose(1, 2)
    found = F.scaled_dot_product_attention(query, again[..., :4], again[..., 4:])
    assert (found - F.scaled_dot_product_attention(query, key, value)).abs().max() < 1e-12
    assert longer.spans == (((1, 2), (4,), (6, 7), (9,), (11, 12), (14,)), ())
    assert longer.conditioning.extras["extra"].shape == (1, 3)
    assert common_length([prompt.conditioning, Conditioning(torch.zeros(1, 2, 16))]) == 10


def test_a_library_knows_names_and_nothing_else(tmp_path):
    save_concept(tmp_path / "tom.safetensors", concept(0))
    save_concept(tmp_path / "tim.safetensors", replace(concept(1, "value"), word="grey cat"))
    save_concept(tmp_path / "other.safetensors", replace(concept(2), prediction="v_prediction"))
    (tmp_path / "broken.safetensors").write_bytes(b"no concept")
    (tmp_path / "below").mkdir()
    save_concept(tmp_path / "below" / "hidden.safetensors", concept(3))
    library, refused = ConceptLibrary.read(tmp_path)
    assert list(library.shelved) == ["other", "tim", "tom"]
    assert [line.partition(":")[0] for line in refused] == ["skipped broken.safetensors"]
    library, refused = library.fitting(SD15)
    assert list(library.shelved) == ["tim", "tom"]
    assert refused == [
        "skipped other: the concept 'cat' was made for v_prediction models, this one predicts epsilon; load that base "
        "model or train the concept again on this one"
    ]
    found = library.concept("tim", 0.5)
    assert (found.name, found.strength, found.residual.word) == ("tim", 0.5, "grey cat")
    stored = concept(1, "value").tensors
    assert all(torch.equal(t, stored[place].half()) for place, t in found.residual.tensors.items())
    with pytest.raises(UnknownConceptError, match=r"there is no concept 'tomm'; did you mean 'tom' or 'tim'\?"):
        library.concept("tomm")
    for name in ("../tom", "below/hidden", "tom.safetensors", str(tmp_path / "tom"), "", "broken"):
        with pytest.raises(UnknownConceptError, match=r"there is no concept"):
            library.concept(name)


def test_a_library_without_concepts_says_so(tmp_path):
    with pytest.raises(InfusionError, match=r"cannot read .*nowhere: No such file"):
        ConceptLibrary.read(tmp_path / "nowhere")
    with pytest.raises(InfusionError, match=r"no concept in .* can be read"):
        ConceptLibrary.read(tmp_path)
    with pytest.raises(InfusionError, match=r"none of 1 concepts fits this base model; skipped tom: the concept"):
        ConceptLibrary.of([("tom", replace(concept(0), architecture="sd2"))]).fitting(SD15)
    with pytest.raises(InfusionError, match="two concepts are called 'tom'"):
        ConceptLibrary.of([("tom", concept(0)), ("tom", concept(1))])

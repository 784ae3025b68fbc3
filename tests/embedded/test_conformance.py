"""The embedded host obeys the whole plan."""

from __future__ import annotations

from infusion_core.embedded.model import EmbeddedModel
from tests import conformance


def test_the_embedded_denoiser_conforms(tinyworld: EmbeddedModel) -> None:
    given = conformance.inputs(tinyworld)
    observed = conformance.observed(tinyworld.denoiser, "infusion_core", given)
    conformance.assert_conforms(observed, conformance.expected(tinyworld, given))

"""What a run was given, held against what a resumed one is given."""

from __future__ import annotations

import pytest

from infusion_cli.given import given_before_loading, require_same
from infusion_core.errors import InfusionError
from infusion_core.training.residual import ResidualSettings


def test_a_run_older_than_a_setting_had_its_default():
    def given(**settings):
        return given_before_loading("cat", ["a {}"], ResidualSettings(**settings), None)

    old = {name: value for name, value in given().items() if name != "times"}
    require_same(old, given())
    with pytest.raises(InfusionError, match="times was stratified"):
        require_same(old, given(times="uniform"))
    before_there_was_an_end = {name: value for name, value in given().items() if name != "replacement_end"}
    with pytest.raises(InfusionError, match=r"replacement-end was 1\.0"):
        require_same(before_there_was_an_end, given())

"""The one boundary of every message: one printable line of bounded length."""

from __future__ import annotations

from infusion_core.errors import LONGEST_MESSAGE, InfusionError, printable


def test_what_people_write_stays() -> None:
    for text in ("cat", "it's a [red] cat", "猫 ñ å ✓", "C:\\photos\\é.png"):
        assert str(InfusionError(text)) == text


def test_one_line_without_control_characters() -> None:
    told = str(InfusionError("a\nb\r\n\tc\x1b[31mred\x00\u202ecba\u2028d\ud800"))
    assert told == "a b c\\x1b[31mred\\x00\\u202ecba d\\ud800"


def test_a_long_text_keeps_both_ends() -> None:
    assert printable("a" * 100 + "z" * 100, 30) == "a" * 20 + "…" + "z" * 9
    assert len(str(InfusionError("x" * 10 * LONGEST_MESSAGE))) == LONGEST_MESSAGE
    assert len(printable("\x1b" * 119)) <= 120

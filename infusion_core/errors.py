"""The one exception type whose message is written for the user: it names the cause and the remedy."""

from __future__ import annotations

LONGEST_MESSAGE = 1000  # letters; what a file or a command line says of itself can be of any length
LONGEST_QUOTE = 120


class InfusionError(ValueError):
    """Something the user can put right. The message is one printable line: what was wrong, then what to do.

    Whatever a file, a folder or a user put into it, no line break, escape sequence or unending name gets out.
    """

    __module__ = "infusion"  # hosts show the full name before the message; a path into this checkout helps nobody

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, LONGEST_MESSAGE))


def printable(text: str, longest: int = LONGEST_QUOTE) -> str:
    """A text as one line that a terminal shows as it is: white space as single spaces, no control characters.

    Args:
        text: from anywhere.
        longest: letters; of a longer text the middle is left out.
    """
    if len(text) > 2 * longest:  # of a huge text only the ends are looked at
        text = f"{text[:longest]}…{text[-longest:]}"
    line = " ".join(text.split())
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    if len(line) <= longest:
        return line
    head = longest * 2 // 3
    return f"{line[:head]}…{line[head + 1 - longest :]}"


def not_installed(what: str, extras: str = "standalone") -> str:
    """That a library is missing, and what brings it. By its name alone pip would find somebody else's package.

    Args:
        what: the library.
        extras: of this project, with commas.
    """
    return f"{what} is not installed; run in the project's folder: pip install -e '.[{extras}]'"

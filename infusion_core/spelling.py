"""Words among the tokens of a CLIP vocabulary that are pieces of words, letter by letter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .letters import places

ENDS = "</w>"  # at the end of a piece that ends a word
Pieces = Callable[[int], str]  # of a vocabulary by token id, such as "cat</w>"


def _byte_alphabet() -> dict[str, bytes]:
    """The byte that each letter of a piece stands for: printable ones for themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(b): bytes([b]) for b in printable} | {chr(256 + n): bytes([b]) for n, b in enumerate(others)}


BYTE_SYMBOLS = _byte_alphabet()  # CLIP's printable stand-ins for the 256 bytes


def all_ascii(ids: Iterable[int], pieces: Pieces) -> bool:
    """Whether a text has no letters beyond ASCII, so that its words end where its tokens say so."""
    return all(pieces(token).isascii() for token in ids)


def spelt_occurrences(ids: Sequence[int], word: Sequence[int], pieces: Pieces) -> list[range]:
    """Where tokens spell a word, also inside a run of letters of a script without spaces.

    Args:
        ids: token ids of the text, without special tokens.
        word: token ids of the word.
        pieces: of the vocabulary.

    Returns:
        Index ranges into `ids`, left to right. One is empty where the word's letters stand, but its tokens do not:
        a token holds a part of another letter, or there are more or fewer than the word has alone.
    """
    text, first, after = _spelt(ids, pieces)
    found = []
    for start, end in places(text, [_spelt(word, pieces)[0]] if word else []):
        i = first.get(_size(text[:start]), 0)
        j = after.get(_size(text[:end]), 0)
        found.append(range(i, j) if j - i == len(word) else range(0))
    return found


def _spelt(ids: Sequence[int], pieces: Pieces) -> tuple[str, dict[int, int], dict[int, int]]:
    """The text that tokens spell, a space between words; by byte, which token begins there and which is after it."""
    spelt, first, after = b"", {}, {}
    for index, piece in enumerate(map(pieces, ids)):
        first[len(spelt)] = index
        spelt += b"".join(BYTE_SYMBOLS.get(letter) or letter.encode() for letter in piece.removesuffix(ENDS))
        after[len(spelt)] = index + 1
        if piece.endswith(ENDS):
            spelt += b" "
    return spelt.decode(errors="surrogateescape").removesuffix(" "), first, after


def _size(text: str) -> int:
    return len(text.encode(errors="surrogateescape"))

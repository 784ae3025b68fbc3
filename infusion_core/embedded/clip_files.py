"""A CLIP tokenizer made from the words and merges in a model's folder, and from nothing else that it may ask for.

A ``tokenizer.json`` can describe any text processing, endless too; of it only words and merges are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InfusionError, printable
from ..spelling import BYTE_SYMBOLS, ENDS
from .model_json import CONFIG_BYTES, either, read_file, read_json, real, whole

TOKENIZER_BYTES = 8 * 2**20  # CLIP's tokenizer.json has 3.6 MB, its vocab.json 1.1, its merges.txt 0.5
LONGEST_TOKEN = 256  # letters
MOST_ADDED = 1000  # tokens that a vocabulary grew by
CHUNK = 77  # tokens that CLIP reads at once, with start and end
SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
}
PROBES = ("a", "cat", "dog", "photo")
REMEDY = "get the tokenizer folder of the model again"


class ClipFiles(NamedTuple):
    """What a tokenizer folder says.

    Attributes:
        words: id by token.
        merges: pairs, in order.
        added: id by token that the vocabulary grew by.
        special: start, end, padding and unknown.
        length: tokens of one chunk, with start and end.
    """

    words: dict[str, int]
    merges: list[tuple[str, ...]]
    added: dict[str, int]
    special: dict[str, str]
    length: int


def read_clip_files(folder: Path, vocabulary: int, positions: int) -> ClipFiles:
    """Read a folder and check that it is a CLIP tokenizer, and that of its text encoder.

    Args:
        folder: of the tokenizer.
        vocabulary: tokens that the text encoder has an embedding for.
        positions: tokens that it reads at once.

    Raises:
        InfusionError: a file is missing or damaged, or the tokenizer is another one.
    """
    file, words, merges, added = _words_and_merges(folder)
    _check_words(file, words, vocabulary)
    if not all(len(pair) == 2 and "".join(pair) in words and set(pair) <= words.keys() for pair in merges):
        raise InfusionError(f"{folder} merges tokens that are not among its words; {REMEDY}")
    options = _options(folder)
    special = {name: _content(folder, name, options.get(name) or usual) for name, usual in SPECIAL.items()}
    added = {token: id_ for token, id_ in {**added, **_added(folder, options)}.items() if words.get(token) != id_}
    ids = sorted(added.values())
    if (
        ids != list(range(len(words), len(words) + len(ids)))
        or len(words) + len(ids) > vocabulary
        or len(ids) > MOST_ADDED
    ):
        raise InfusionError(
            f"{folder} adds tokens that are not next in its vocabulary, or not in the text encoder's; {REMEDY}"
        )
    for name, token in special.items():
        if token not in words and token not in added:
            raise InfusionError(f"{folder}: {name} {printable(token)!r} is not among its words; {REMEDY}")
    if special["bos_token"] == special["eos_token"]:
        raise InfusionError(f"{folder}: start and end are one token; {REMEDY}")
    return ClipFiles(words, merges, added, special, _length(folder, options, positions))


def clip_tokenizer(folder: Path, vocabulary: int, positions: int) -> tuple[Any, int]:
    """transformers' tokenizer of a folder, and the tokens of one chunk; see `read_clip_files`."""
    files = read_clip_files(folder, vocabulary, positions)
    tokenizer = _made(files)
    tokenizer.add_tokens(sorted(files.added, key=files.added.__getitem__))
    known = {**files.words, **files.added}
    texts = [tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in PROBES]
    same = all(
        tokenizer.convert_tokens_to_ids(token) == known[token] for token in (*files.added, *files.special.values())
    )
    if (
        not same
        or len(set(texts)) < len(texts)
        or not all(0 <= i < vocabulary for ids in texts for i in ids)
        or () in texts
    ):
        raise InfusionError(f"{folder} does not tell {', '.join(PROBES)} apart; {REMEDY}")
    return tokenizer, files.length


def _made(files: ClipFiles) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=files.words, merges=files.merges, model_max_length=files.length, **files.special)


def _words_and_merges(folder: Path) -> tuple[Path, dict[str, Any], list[tuple[str, ...]], dict[str, Any]]:
    """The file that holds the words, the words, the merges, and the tokens that ``tokenizer.json`` adds to them."""
    vocabulary, everything = folder / "vocab.json", folder / "tokenizer.json"
    told = read_json(everything, TOKENIZER_BYTES) if everything.is_file() else {}
    tokens = told.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise InfusionError(f"{everything}: added_tokens is not a list of tokens; {REMEDY}")
    added = _checked_added(everything, [(token.get("content"), token.get("id")) for token in tokens])
    if told and not vocabulary.is_file():
        return everything, *_of_model(everything, told.get("model")), added
    words = read_json(vocabulary, TOKENIZER_BYTES)
    lines = _text(folder / "merges.txt").split("\n")
    return vocabulary, words, [tuple(line.split()) for line in lines if line and not line.startswith("#version")], added


def _of_model(file: Path, model: Any) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """Words and merges of a ``tokenizer.json``; merges are pairs or, in older files, text."""
    words, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    if not isinstance(words, dict) or not isinstance(merges, list):
        raise InfusionError(f"{file} holds no words and merges; {REMEDY}")
    split = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    if not all(isinstance(pair, list) and all(isinstance(part, str) for part in pair) for pair in split):
        raise InfusionError(f"{file} has merges that are not two tokens each; {REMEDY}")
    return words, [tuple(pair) for pair in split]


def _text(file: Path) -> str:
    try:
        return read_file(file, TOKENIZER_BYTES).decode()
    except UnicodeDecodeError as error:
        raise InfusionError(f"{file} is no text; {REMEDY}") from error


def _check_words(file: Path, words: Mapping[str, Any], vocabulary: int) -> None:
    """Refuse words without numbers of their own, or that are not CLIP's."""
    ids = set(words.values()) if all(type(i) is int for i in words.values()) else set()
    if not words or len(ids) < len(words) or min(ids) < 0 or max(map(len, words)) > LONGEST_TOKEN:
        raise InfusionError(f"{file} is no list of words, each with a number of its own; {REMEDY}")
    if max(ids) >= vocabulary:
        raise InfusionError(
            f"{file} numbers its words up to {max(ids):,}, the text encoder knows {vocabulary:,}; "
            f"it is another model's: {REMEDY}"
        )
    lacking = [symbol for symbol in BYTE_SYMBOLS if symbol not in words or symbol + ENDS not in words]
    if lacking:
        raise InfusionError(
            f"{file} is no CLIP vocabulary (it lacks {len(lacking)} of 256 bytes, the first: {lacking[0]!r}); {REMEDY}"
        )


def _options(folder: Path) -> dict[str, Any]:
    """What ``tokenizer_config.json`` says, and below it the older ``special_tokens_map.json``."""
    files = [folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    return {key: value for file in files if file.is_file() for key, value in read_json(file, CONFIG_BYTES).items()}


def _content(folder: Path, name: str, token: Any) -> str:
    """A special token, which is text or an object with ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_TOKEN:
        raise InfusionError(f"{folder}: {name} is no token; {REMEDY}")
    return text


def _added(folder: Path, options: Mapping[str, Any]) -> dict[str, int]:
    """Tokens that the vocabulary grew by, newer files first in line."""
    file = folder / "added_tokens.json"
    older = _checked_added(file, read_json(file).items()) if file.is_file() else {}
    config, newer = folder / "tokenizer_config.json", options.get("added_tokens_decoder") or {}
    if not isinstance(newer, dict) or not all(isinstance(t, dict) and i.isdecimal() for i, t in newer.items()):
        raise InfusionError(f"{config}: added_tokens_decoder is not a list of tokens; {REMEDY}")
    return older | _checked_added(config, [(token.get("content"), int(i[:9])) for i, token in newer.items()])


def _checked_added(file: Path, added: Iterable[tuple[Any, Any]]) -> dict[str, int]:
    found = {}
    for token, number in added:
        if not isinstance(token, str) or not 0 < len(token) <= LONGEST_TOKEN or type(number) is not int:
            raise InfusionError(f"{file} adds tokens that are no text with a number; {REMEDY}")
        found[token] = number
    return found


def _length(folder: Path, options: Mapping[str, Any], positions: int) -> int:
    told = options.get("model_max_length", CHUNK)
    if not either(whole(3, 10**40), real(3, 1e40)).holds(told):
        raise InfusionError(f"{folder}: model_max_length is {printable(repr(told))}, CLIP's is {CHUNK}; {REMEDY}")
    length = min(int(told), CHUNK)
    if length > positions:
        raise InfusionError(f"{folder} makes chunks of {length} tokens, its text encoder reads {positions}; {REMEDY}")
    return length

"""Byte-level BPE tokenizers: what each id stands for in bytes, and the tokenizer itself as JSON.

A byte-level tokenizer writes every byte as one printable character (GPT-2's table) and merges
those.  Ids are turned into bytes by that table and never by the library's decoder, which
replaces what is not UTF-8 and tidies spaces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from archiver.errors import InvalidModelError
from archiver.text.bpe_json import (
    TokenType,
    added_token,
    bpe_tokenizer_json,
    refuse_long_tokens,
)


def _byte_characters() -> dict[int, str]:
    """Return GPT-2's character for each byte.

    Printable Latin-1 characters stand for themselves; the 68 others take U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


CHARACTER_OF_BYTE = _byte_characters()
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def bytes_of_token(token: str) -> bytes | None:
    """Return the bytes that a token of the vocabulary stands for; None where it is not one."""
    try:
        return bytes(map(BYTE_OF_CHARACTER.__getitem__, token)) or None
    except KeyError:
        return None


_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_DIGITS_FIRST = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
}
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": _LLAMA3_PATTERN},
            "behavior": "Isolated",
            "invert": False,
        },
        {**_BYTE_LEVEL, "use_regex": False},
    ],
}

# How text is cut before merging, by GGUF's ``tokenizer.ggml.pre``, and whether a whole piece
# that is in the vocabulary is taken without merging.  Models were trained with one of these and
# tokens cut in another way cost bits, so a name that is not here is refused.
PRE_TOKENIZERS: dict[str, tuple[Mapping[str, object], bool]] = {
    "gpt-2": (_BYTE_LEVEL, False),
    "smollm": (_DIGITS_FIRST, False),
    "llama-bpe": (_LLAMA3, True),
}


def tokenizer_json_from_gguf(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], pre_tokenizer: str
) -> str:
    """Return the tokenizer that a GGUF file describes, in the ``tokenizers`` library's format.

    Raises:
        InvalidModelError: the pre-tokenizer is not known, or the lists do not fit together.
    """
    if pre_tokenizer not in PRE_TOKENIZERS:
        raise InvalidModelError(f"the pre-tokenizer {pre_tokenizer!r} is not supported")
    if len(types) != len(tokens):
        raise InvalidModelError("token types and tokens differ in number")
    rule, ignore_merges = PRE_TOKENIZERS[pre_tokenizer]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise InvalidModelError("a token occurs twice in the vocabulary")
    pairs = [merge.split(" ") for merge in merges]
    if not all(
        len(pair) == 2 and pair[0] in vocab and pair[1] in vocab and "".join(pair) in vocab
        for pair in pairs
    ):
        raise InvalidModelError("a merge is not of two tokens into a third")
    added = [
        added_token(index, token, special=kind != TokenType.USER_DEFINED)
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED) and token
    ]
    model = {"vocab": vocab, "merges": pairs, "ignore_merges": ignore_merges}
    return _tokenizer_json(added, None, rule, model)


def plain_tokenizer_json(source: str) -> str:
    """Return a published tokenizer reduced to what turns text into ids, without surprises.

    Templates, truncation, padding, dropout and the space in front of a text are gone: they
    add or lose something, or change from call to call.

    Raises:
        InvalidModelError: it is not a byte-level BPE tokenizer.
    """
    try:
        data = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InvalidModelError("tokenizer.json is not valid JSON") from error
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise InvalidModelError("tokenizer.json does not describe a tokenizer")
    model, rule = data["model"], data.get("pre_tokenizer")
    kind = model.get("type", "BPE")
    if kind != "BPE" or model.get("byte_fallback") or not _has_byte_level(rule):
        raise InvalidModelError(
            f"the tokenizer is not byte-level BPE (it is {kind!r}"
            f"{' with byte fallback' if model.get('byte_fallback') else ''})"
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise InvalidModelError("the tokenizer marks words by prefix or suffix: not byte-level")
    vocab, merges, added = model.get("vocab"), model.get("merges"), data.get("added_tokens") or []
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not isinstance(added, list):
        raise InvalidModelError("tokenizer.json lacks a vocabulary or merges")
    if not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise InvalidModelError("tokenizer.json has a token without an id")
    for token in added:
        if (
            not isinstance(token, dict)
            or type(token.get("id")) is not int
            or not isinstance(token.get("content"), str)
        ):
            raise InvalidModelError("tokenizer.json has a malformed added token")
    added = [
        added_token(token["id"], token["content"], special=bool(token.get("special")))
        for token in added
        if token["content"]
    ]
    kept = {"vocab": vocab, "merges": merges, "ignore_merges": bool(model.get("ignore_merges"))}
    return _tokenizer_json(added, data.get("normalizer"), _without_prefix_space(rule), kept)


def token_bytes_of(tokenizer_json: str, vocab: int) -> list[bytes | None]:
    """Return what each id stands for: its bytes, or None for special and unused ids.

    Args:
        tokenizer_json: a tokenizer as the two functions above write it.
        vocab: how many ids there are, that is rows of the embedding; later ids have no token.

    Raises:
        InvalidModelError: a token has an id that the model has no row for, or is too long.
    """
    data = json.loads(tokenizer_json)
    found: list[bytes | None] = [None] * vocab
    ids = [*data["model"]["vocab"].values(), *(token["id"] for token in data["added_tokens"])]
    if not all(0 <= index < vocab for index in ids):
        raise InvalidModelError(f"the tokenizer has ids beyond the model's {vocab} rows")
    for token, index in data["model"]["vocab"].items():
        found[index] = bytes_of_token(token)
    for added in data["added_tokens"]:
        found[added["id"]] = None if added["special"] else added["content"].encode()
    refuse_long_tokens(found)
    return found


def special_ids_of(tokenizer_json: str) -> dict[str, int]:
    """Return the ids of the special tokens by their text."""
    data = json.loads(tokenizer_json)
    return {added["content"]: added["id"] for added in data["added_tokens"] if added["special"]}


def _tokenizer_json(
    added: Sequence[Mapping[str, object]],
    normalizer: object,
    rule: object,
    model: Mapping[str, object],
) -> str:
    """Return the canonical JSON text of a byte-level BPE tokenizer."""
    return bpe_tokenizer_json(
        added, normalizer=normalizer, pre_tokenizer=rule, decoder={**_BYTE_LEVEL}, model=model
    )


def _has_byte_level(rule: object) -> bool:
    """Return whether a pre-tokenizer, or one of a sequence of them, maps bytes to characters."""
    if not isinstance(rule, dict):
        return False
    if rule.get("type") == "Sequence":
        parts = rule.get("pretokenizers")
        return isinstance(parts, list) and any(_has_byte_level(part) for part in parts)
    return rule.get("type") == "ByteLevel"


def _without_prefix_space(rule: object) -> object:
    """Return the pre-tokenizer with no space put in front of a text."""
    if isinstance(rule, dict):
        return {
            key: False if key == "add_prefix_space" else _without_prefix_space(value)
            for key, value in rule.items()
        }
    if isinstance(rule, list):
        return [_without_prefix_space(part) for part in rule]
    return rule

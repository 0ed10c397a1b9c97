"""SentencePiece BPE tokenizers: text as pieces with scores, and a token for every byte beside them.

    text ── tokens of the user's cut out, the longest first ─┬─ those tokens
                                                             └─ the rest: a space becomes "▁",
        neighbours are merged into the piece of the best score as long as there is one, and a
        character that is no piece falls into the tokens of its bytes

No space is put in front of a text.  A "▁" of the text itself is taken for a space; ``framing``
notices and finds other tokens.

Source: Kudo and Richardson (2018), SentencePiece; the merges that stand for the scores are those
that transformers makes of such a model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from archiver.errors import InvalidModelError
from archiver.text.bpe_json import (
    TokenType,
    added_token,
    bpe_tokenizer_json,
    refuse_long_tokens,
)

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}
# Searched for in the text as it is, and left out of it (see ``added_token``).
_CUT_OUT = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


def tokenizer_json_from_pieces(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]
) -> str:
    """Return the tokenizer that tokens, types and scores describe, as the library reads it.

    Pieces merge in the order of their scores, the greatest first.  Of several ways to put
    one piece together, the one with the longer left part comes first.

    Raises:
        InvalidModelError: the lists do not fit together, a score is not a number, or there is a
            byte that no token stands for, so that text could be lost.
    """
    if not len(types) == len(tokens) == len(scores):
        raise InvalidModelError("tokens, their types and their scores differ in number")
    if not all(map(math.isfinite, scores)):
        raise InvalidModelError("a token's score is not a number")
    contents = [
        _user_text(token) if kind == TokenType.USER_DEFINED else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    vocab = {content: index for index, content in enumerate(contents)}
    if len(vocab) != len(tokens):
        raise InvalidModelError("a token occurs twice in the vocabulary")
    bytes_named = {
        _byte_of_piece(token)
        for token, kind in zip(tokens, types, strict=True)
        if kind == TokenType.BYTE
    }
    missing = sorted(set(range(256)) - bytes_named)
    if missing:
        raise InvalidModelError(
            f"the tokenizer is not lossless: no token for the byte 0x{missing[0]:02X}"
        )
    added = [
        added_token(index, content, special=kind != TokenType.USER_DEFINED)
        for index, (content, kind) in enumerate(zip(contents, types, strict=True))
        if kind in _CUT_OUT and content
    ]
    model = {"vocab": vocab, "merges": _merges(tokens, types, scores), "byte_fallback": True}
    return bpe_tokenizer_json(
        added, normalizer=_NORMALIZER, pre_tokenizer=None, decoder=_DECODER, model=model
    )


def token_bytes_of_pieces(tokens: Sequence[str], types: Sequence[int]) -> list[bytes | None]:
    """Return what each id stands for: its bytes, or None where text never becomes that id.

    Those are control tokens, unused ones, and tokens of single bytes that are pieces too.

    Raises:
        InvalidModelError: a token is too long.
    """
    found: list[bytes | None] = [None] * len(tokens)
    taken: set[bytes] = set()
    for wanted in (TokenType.USER_DEFINED, TokenType.NORMAL, TokenType.BYTE):
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
            if kind != wanted:
                continue
            if kind == TokenType.BYTE:
                content = bytes([_byte_of_piece(token)])
            elif kind == TokenType.NORMAL and " " in token:
                continue  # no text has a space when pieces are looked for
            else:
                content = _user_text(token).encode()
            if content and content not in taken:
                taken.add(content)
                found[index] = content
    refuse_long_tokens(found)
    return found


def _user_text(token: str) -> str:
    """Return the text that a token stands for."""
    return token.replace(_SPACE, " ")


def _byte_of_piece(token: str) -> int:
    match = _BYTE_PIECE.fullmatch(token)
    if match is None:
        raise InvalidModelError(f"the token {token!r} is said to be a byte's, but names none")
    return int(match[1], 16)


def _merges(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Return the pairs of pieces that make a piece, in the order in which they merge."""
    pieces = {
        token: score
        for token, kind, score in zip(tokens, types, scores, strict=True)
        if kind == TokenType.NORMAL
    }
    pairs = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    return [(left, right) for _, _, left, right in sorted(pairs)]

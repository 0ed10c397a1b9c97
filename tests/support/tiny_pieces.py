"""The pieces of a tiny SentencePiece BPE tokenizer."""

from __future__ import annotations

import string

from archiver.text.bpe_json import TokenType
from archiver.text.byte_level import bytes_of_token
from tests.support.tiny_models import tiny_vocabulary

CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<unused3>")
USER_DEFINED = ("\n", "\n\n", "  ", "   ", "<b>")
_CHARACTERS = "▁" + string.ascii_letters + "01259.,;:?<>=éМ"


def tiny_pieces(vocab: int) -> tuple[list[str], list[int], list[float]]:
    """Return tokens, types and scores by id: control, user-defined, bytes, merged, characters."""
    byte_level, _ = tiny_vocabulary(vocab)
    merged = []
    for token in byte_level:
        content = bytes_of_token(token) or b""
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        if len(text) > 1 and "\n" not in text and text.strip():
            merged.append(text.replace(" ", "▁"))
    first = [(token, TokenType.CONTROL) for token in CONTROL]
    first += [(token, TokenType.USER_DEFINED) for token in USER_DEFINED]
    first += [(f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)]
    room = vocab - len(first) - len(_CHARACTERS)
    pieces = [*merged[:room], *_CHARACTERS]
    tokens = [token for token, _ in first] + pieces
    types = [int(kind) for _, kind in first] + [int(TokenType.NORMAL)] * len(pieces)
    scores = [-1000.0] * len(first) + [-float(place) for place in range(len(pieces))]
    assert len(tokens) == vocab
    return tokens, types, scores

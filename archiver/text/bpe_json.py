"""BPE tokenizers as JSON in the format of the ``tokenizers`` library: what all kinds share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import IntEnum

from archiver.errors import InvalidModelError

MAX_TOKEN_BYTES = 4096


class TokenType(IntEnum):
    """What GGUF says a token is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def added_token(index: int, content: str, *, special: bool) -> dict[str, object]:
    """Return the entry of a token that is looked for in a text before anything is merged.

    Args:
        special: whether it is looked for only where that is asked for, which llmzip never does.
    """
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def bpe_tokenizer_json(
    added: Sequence[Mapping[str, object]],
    *,
    normalizer: object,
    pre_tokenizer: object,
    decoder: object,
    model: Mapping[str, object],
) -> str:
    """Return the canonical JSON text of a tokenizer.

    Args:
        model: its vocabulary and merges, and the settings that are not those of a plain BPE.
    """
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": sorted(added, key=lambda token: str(token["id"]).zfill(12)),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": None,
            "decoder": decoder,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                **model,
            },
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def refuse_long_tokens(token_bytes: Sequence[bytes | None]) -> None:
    """Return where no token is absurdly long.

    Raises:
        InvalidModelError: one is.
    """
    longest = max((len(item) for item in token_bytes if item is not None), default=0)
    if longest > MAX_TOKEN_BYTES:
        raise InvalidModelError(f"a token is {longest} bytes long")

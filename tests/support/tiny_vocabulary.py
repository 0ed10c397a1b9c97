"""A vocabulary as framing sees it, without the decision tree that the codec needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainVocabulary:
    """Tokens in byte order, and each id's place among them."""

    token_bytes: list[bytes]
    rank_of_id: NDArray[np.int32]


def plain_vocabulary(token_bytes: Sequence[bytes | None]) -> PlainVocabulary:
    """Return the vocabulary of the tokens given by id; a repeated token keeps its first id."""
    first: dict[bytes, int] = {}
    for index, token in enumerate(token_bytes):
        if token:
            first.setdefault(token, index)
    ordered = sorted(first)
    rank_of_id = np.full(len(token_bytes), -1, dtype=np.int32)
    for rank, token in enumerate(ordered):
        rank_of_id[first[token]] = rank
    return PlainVocabulary(token_bytes=ordered, rank_of_id=rank_of_id)

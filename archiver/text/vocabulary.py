"""The vocabulary in the order of its byte strings, and the tree of binary decisions over it.

A token is coded as a path of decisions: the eight bits of its first byte, then, before every
further byte, whether the token goes on (0 = it ends here, 1 = it continues), and that byte's bits.
In the order of byte strings every prefix is one contiguous range of ranks, so a decision splits a
range in two. A decision with one possible outcome is not coded, hence a vocabulary of n tokens
has exactly n - 1 decisions, the inner nodes of a binary tree.

Source: FORMAT.md, "Decision tree".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from archiver.compiled import compiled
from archiver.errors import InvalidModelError
from archiver.types import Int32Array, Int64Array, UInt8Array

BITS_PER_BYTE = 9  # eight of the byte and one that says whether the token goes on


@compiled()
def _first_differences(data, offsets, places):
    """places[i] = index of the first decision in which tokens i and i + 1 differ, or -1 if the
    two are not in strictly ascending order."""
    for i in range(places.shape[0]):
        a, b, c = offsets[i], offsets[i + 1], offsets[i + 2]
        common = 0
        shorter = min(b - a, c - b)
        while common < shorter and data[a + common] == data[b + common]:
            common += 1
        if common == shorter:
            places[i] = 9 * common - 1 if b - a < c - b else -1
        else:
            x = data[a + common]
            y = data[b + common]
            bit = 0
            while ((x ^ y) >> (7 - bit)) & 1 == 0:
                bit += 1
            places[i] = 9 * common + bit if x < y else -1


@compiled()
def _build_tree(places, splits, left, right):
    """The Cartesian tree of `places`: the earliest decision of a range is its root.

    Nodes are numbered in preorder, so a child's number is greater than its parent's.
    """
    n = places.shape[0]
    lower = np.full(n, -1, np.int32)
    upper = np.full(n, -1, np.int32)
    stack = np.empty(n, np.int32)
    depth = 0
    for i in range(n):
        last = np.int32(-1)
        while depth > 0 and places[stack[depth - 1]] > places[i]:
            depth -= 1
            last = stack[depth]
        lower[i] = last
        if depth > 0:
            upper[stack[depth - 1]] = i
        stack[depth] = i
        depth += 1
    root = stack[0]
    number = 0
    depth = 1
    parents = np.empty(n + 1, np.int32)
    stack[0] = root
    parents[0] = -1
    while depth > 0:
        depth -= 1
        i = stack[depth]
        parent = parents[depth]
        if parent >= 0:
            if i < splits[parent] - 1:
                left[parent] = number
            else:
                right[parent] = number
        splits[number] = i + 1
        left[number] = -1
        right[number] = -1
        if upper[i] >= 0:
            stack[depth] = upper[i]
            parents[depth] = number
            depth += 1
        if lower[i] >= 0:
            stack[depth] = lower[i]
            parents[depth] = number
            depth += 1
        number += 1


@compiled()
def _depth(left, right):
    """The longest path through the tree, in decisions; children follow their parents."""
    depth = np.ones(left.shape[0], np.int32)
    deepest = 1
    for node in range(left.shape[0]):
        deepest = max(deepest, depth[node])
        if left[node] >= 0:
            depth[left[node]] = depth[node] + 1
        if right[node] >= 0:
            depth[right[node]] = depth[node] + 1
    return deepest


class DecisionTree(NamedTuple):
    """What compiled loops need of a vocabulary; `Vocabulary` describes the arrays."""

    data: UInt8Array
    offsets: Int64Array
    splits: Int32Array
    left: Int32Array
    right: Int32Array
    places: Int32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens by rank, and the decision tree over them.

    Attributes:
        data: uint8, the tokens' bytes, joined in the order of ranks.
        offsets: int64 [tokens + 1], where each begins.
        splits: int32 [tokens - 1], of each decision the first rank that takes the branch 1.
        left, right: int32 [tokens - 1], the decision that follows a 0 or a 1, -1 for none left.
        places: int32 [tokens - 1], the decision's place in the token: 9 * byte + bit, bit 8 for
            "does the token go on".
        rank_of_id: int32 [ids], rank by the tokenizer's own id, -1 for tokens that are not coded.
        deepest: the most decisions of any token.
    """

    data: UInt8Array
    offsets: Int64Array
    splits: Int32Array
    left: Int32Array
    right: Int32Array
    places: Int32Array
    rank_of_id: Int32Array
    deepest: int

    @classmethod
    def build(cls, data: UInt8Array, offsets: Int64Array, rank_of_id: Int32Array) -> Vocabulary:
        """The vocabulary of tokens given in strictly ascending byte order.

        Raises:
            InvalidModelError: the tokens are not sorted, not unique, or one is empty.
        """
        tokens = len(offsets) - 1
        if (
            tokens < 2
            or offsets[0] != 0
            or offsets[-1] != len(data)
            or (np.diff(offsets) < 1).any()
        ):
            raise InvalidModelError("the package's token table is malformed")
        if rank_of_id.size and not (rank_of_id.min() >= -1 and rank_of_id.max() < tokens):
            raise InvalidModelError("the package's token numbers are out of range")
        by_boundary = np.empty(tokens - 1, np.int32)
        _first_differences(data, offsets, by_boundary)
        if (by_boundary < 0).any():
            raise InvalidModelError("the package's tokens are not in ascending byte order")
        splits, left, right = (np.empty(tokens - 1, np.int32) for _ in range(3))
        _build_tree(by_boundary, splits, left, right)
        return cls(
            data=data,
            offsets=offsets,
            splits=splits,
            left=left,
            right=right,
            places=by_boundary[splits - 1],
            rank_of_id=rank_of_id,
            deepest=_depth(left, right),
        )

    @property
    def tree(self) -> DecisionTree:
        """The arrays of the decision tree."""
        return DecisionTree(
            data=self.data,
            offsets=self.offsets,
            splits=self.splits,
            left=self.left,
            right=self.right,
            places=self.places,
        )

    @property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return int(np.diff(self.offsets).max())

    @property
    def size(self) -> int:
        """Number of coded tokens."""
        return len(self.offsets) - 1

    def bytes_of(self, rank: int) -> bytes:
        """The byte string of one token."""
        return self.data[self.offsets[rank] : self.offsets[rank + 1]].tobytes()

    @property
    def token_bytes(self) -> list[bytes]:
        """All byte strings in the order of ranks."""
        joined = self.data.tobytes()
        bounds = self.offsets.tolist()
        return [joined[a:b] for a, b in itertools.pairwise(bounds)]


def sort_tokens(
    token_bytes: Sequence[bytes | None],
) -> tuple[UInt8Array, Int64Array, Int32Array]:
    """Token table of a tokenizer: joined bytes, offsets and the rank of every id.

    Args:
        token_bytes: by id; None, and empty strings, for ids that stand for no text. Of several
            ids with the same bytes the lowest is coded.
    """
    first: dict[bytes, int] = {}
    for number, text in enumerate(token_bytes):
        if text:
            first.setdefault(text, number)
    ordered = sorted(first)
    rank_of_id = np.full(len(token_bytes), -1, np.int32)
    for rank, text in enumerate(ordered):
        rank_of_id[first[text]] = rank
    data = np.frombuffer(b"".join(ordered), np.uint8).copy()
    offsets = np.zeros(len(ordered) + 1, np.int64)
    np.cumsum([len(text) for text in ordered], out=offsets[1:])
    return data, offsets, rank_of_id

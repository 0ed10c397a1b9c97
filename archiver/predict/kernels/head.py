"""From the head's products to the probability of each binary decision.

The vocabulary is sorted by byte strings, so a decision splits a contiguous range of ranks
[first, end) at `split`: the right part's share of the range's weight is the probability of a 1.
Sums of integer weights are looked up through totals of tiles.

Source: FORMAT.md, "Predictor" (weights) and "Predictor frame payload" (decision tree).
"""

from __future__ import annotations

import numpy as np

from archiver.coding.range_coder import PROBABILITY_ONE
from archiver.compiled import compiled
from archiver.predict.kernels.elementary import (
    exp2_nonpositive,
    float_of_key,
    order_key,
)

TILE_RANKS = 64
WEIGHT_SCALE = np.float32(1 << 30)
WEIGHT_MAX = (1 << 30) + 1  # of the most likely rank, always


@compiled()
def _weigh_logits(product, scale, head_scales, logits):
    best = np.int32(-(2**31))
    for j in range(logits.shape[0]):
        z = product[j] * (scale * head_scales[j])
        logits[j] = z
        best = max(best, order_key(z))
    return best


@compiled()
def _weights(logits, top, weights):
    for j in range(weights.shape[0]):
        weights[j] = np.int32(exp2_nonpositive(logits[j] - top) * WEIGHT_SCALE) + np.int32(1)


@compiled()
def _tile_total(weights):
    total = np.int64(0)
    for j in range(weights.shape[0]):
        total += np.int64(weights[j])
    return total


@compiled()
def weigh_vocabulary(product, scale, head_scales, logits, weights, cumulative):
    """weights[rank] is the rank's integer weight, cumulative[t] the weight of ranks < 64 t.

    Args:
        product: float32 [ranks]; scale: float32; head_scales: float32 [ranks], log2(e) folded in.
        logits: float32 [ranks], scratch.
        weights: int32 [ranks], each in 1 .. 2^30 + 1, so that a total is below 2^62.
        cumulative: int64 [ceil(ranks / 64) + 1].
    """
    top = float_of_key(_weigh_logits(product, scale, head_scales, logits))
    _weights(logits, top, weights)
    total = np.int64(0)
    ranks = weights.shape[0]
    for tile in range(cumulative.shape[0] - 1):
        cumulative[tile] = total
        total += _tile_total(weights[tile * TILE_RANKS : min(ranks, (tile + 1) * TILE_RANKS)])
    cumulative[cumulative.shape[0] - 1] = total


@compiled()
def weight_below(rank, weights, cumulative):
    """The total weight of all ranks below `rank`, int64."""
    tile = rank >> 6
    return cumulative[tile] + _tile_total(weights[tile << 6 : rank])


@compiled()
def first_guess(weights, cumulative):
    """The first of the most likely ranks, int64: those whose weight is the largest there is."""
    for tile in range(cumulative.shape[0] - 1):
        if cumulative[tile + 1] - cumulative[tile] >= WEIGHT_MAX:
            for rank in range(tile * TILE_RANKS, min(weights.shape[0], (tile + 1) * TILE_RANKS)):
                if weights[rank] == WEIGHT_MAX:
                    return np.int64(rank)
    return np.int64(0)


@compiled()
def sign_bits(codes, found):
    """found[r] has bit i of word i // 64 where codes[r, i] is above 0.

    Args:
        codes: int8 [rows, entries]; found: uint64 [rows, ceil(entries / 64)].
    """
    for row in range(codes.shape[0]):
        for word in range(found.shape[1]):
            begin = 64 * word
            bits = np.uint64(0)
            for i in range(min(64, codes.shape[1] - begin)):
                bits |= np.uint64(codes[row, begin + i] > 0) << np.uint64(i)
            found[row, word] = bits


@compiled()
def split_probability(left, right):
    """P(1) in units of 2^-22, in 1 .. 2^22 - 1, where weights `left` stand for 0, `right` for 1.

    Both are positive and their sum is below 2^53, so the conversions are exact and the quotient
    is rounded once.
    """
    share = np.float64(right) / np.float64(left + right)
    return min(max(np.int64(share * np.float64(PROBABILITY_ONE)), 1), PROBABILITY_ONE - 1)


@compiled()
def path_probabilities(
    products, scales, head_scales, ranks, splits, left, right, probabilities, counts, guesses
):
    """The model's probabilities along each row's own path, one after the other.

    Args:
        products: float32 [rows, vocabulary]; scales: float32 [rows].
        ranks: int32 [rows], the token that each row predicts, or -1 for none.
        splits, left, right: int32 [nodes], the decision tree (see `Vocabulary`).
        probabilities: uint32, large enough; counts: int32 [rows], decisions of each row; guesses:
            int32 [rows], the first of the most likely ranks, where a row predicts a token.

    Returns:
        how many probabilities were written.
    """
    size = head_scales.shape[0]
    logits = np.empty(size, np.float32)
    weights = np.empty(size, np.int32)
    cumulative = np.empty((size + TILE_RANKS - 1) // TILE_RANKS + 1, np.int64)
    written = 0
    for row in range(ranks.shape[0]):
        rank = ranks[row]
        counts[row] = 0
        if rank < 0:
            continue
        weigh_vocabulary(products[row], scales[row], head_scales, logits, weights, cumulative)
        guesses[row] = first_guess(weights, cumulative)
        begin = np.int64(0)
        end = cumulative[cumulative.shape[0] - 1]
        node = np.int32(0) if size > 1 else np.int32(-1)
        start = written
        while node >= 0:
            split = splits[node]
            middle = weight_below(split, weights, cumulative)
            probabilities[written] = split_probability(middle - begin, end - middle)
            written += 1
            if rank >= split:
                begin = middle
                node = right[node]
            else:
                end = middle
                node = left[node]
        counts[row] = written - start
    return written

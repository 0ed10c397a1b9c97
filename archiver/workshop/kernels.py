"""Compiled passes over bfloat16 vectors for training: one reading and one writing of memory each.

Torch runs every operation on its own, and with 16-bit numbers most time goes into moving them.
Not exact, on purpose: this is the floating-point side.  bfloat16 arrays are given by their bits,
uint16.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from archiver.compiled import compiled

_LOG2_E = np.float32(1.4426950408889634)
_ONE = np.float32(1.0)
_FAST = {"contract", "nsz", "arcp", "reassoc"}
_compiled = compiled(fastmath=_FAST)
_inlined = njit(inline="always", fastmath=_FAST, error_model="numpy")


@intrinsic
def _float_of(typing_context, bits):
    """The float32 with these bits."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), build


@intrinsic
def _bits_of(typing_context, value):
    """The bits of a float32."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), build


@_inlined
def _wide(bits):
    """A bfloat16 as float32."""
    return _float_of(np.uint32(bits) << np.uint32(16))


@_inlined
def _narrow(value):
    """A float32 as bfloat16, rounded to nearest, ties to even."""
    bits = _bits_of(value)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@_inlined
def _exp(x):
    """e^x to about 2e-7, of x held to -86 .. 86."""
    x = min(max(x * _LOG2_E, np.float32(-125)), np.float32(125))
    whole = np.floor(x + np.float32(0.5))
    f = x - whole
    # Minimax polynomial of 2^f on -1/2 .. 1/2.
    p = np.float32(0.0013333558) * f + np.float32(0.009618129)
    p = p * f + np.float32(0.055504109)
    p = p * f + np.float32(0.24022651)
    p = p * f + np.float32(0.69314718)
    p = p * f + _ONE
    return p * _float_of(np.uint32(np.int32(whole) + np.int32(127)) << np.uint32(23))


@_compiled
def add_norm(stream, addend, gain, epsilon, total, inverse, normed):
    """total = stream + addend; inverse = 1 / rms(total); normed = total * inverse * gain.

    Args:
        stream, total: float32 [tokens, width]; addend, normed: bfloat16 [tokens, width];
        gain: float32 [width]; inverse: float32 [tokens].
    """
    tokens, width = stream.shape
    for t in range(tokens):
        squares = np.float32(0.0)
        for i in range(width):
            x = stream[t, i] + _wide(addend[t, i])
            total[t, i] = x
            squares += x * x
        r = _ONE / np.sqrt(squares / np.float32(width) + epsilon)
        inverse[t] = r
        for i in range(width):
            normed[t, i] = _narrow(total[t, i] * r * gain[i])


@_compiled
def add_norm_back(total, inverse, gain, upstream, normed_grad, grad, addend_grad, gain_grad):
    """The gradient of add_norm: grad for the stream, the same narrowed for the addend.

    Args:
        upstream: float32 [tokens, width], the gradient of total from elsewhere; normed_grad:
        bfloat16; grad: float32; addend_grad: bfloat16; gain_grad: float32 [width], added to.
    """
    tokens, width = total.shape
    for t in range(tokens):
        r = inverse[t]
        along = np.float32(0.0)
        for i in range(width):
            along += _wide(normed_grad[t, i]) * gain[i] * total[t, i]
        along *= r * r * r / np.float32(width)
        for i in range(width):
            y = _wide(normed_grad[t, i])
            x = total[t, i]
            gain_grad[i] += y * x * r
            g = upstream[t, i] + y * gain[i] * r - x * along
            grad[t, i] = g
            addend_grad[t, i] = _narrow(g)


@_compiled
def gated(gate_up, product):
    """product = silu(gate) * up; gate_up: bfloat16 [tokens, 2 width], product: [tokens, width]."""
    tokens, width = product.shape
    for t in range(tokens):
        for i in range(width):
            g = _wide(gate_up[t, i])
            product[t, i] = _narrow(g / (_ONE + _exp(-g)) * _wide(gate_up[t, width + i]))


@_compiled
def gated_back(gate_up, grad, gate_up_grad):
    """The gradient of gated."""
    tokens, width = grad.shape
    for t in range(tokens):
        for i in range(width):
            g = _wide(gate_up[t, i])
            y = _wide(grad[t, i])
            s = _ONE / (_ONE + _exp(-g))
            gate_up_grad[t, width + i] = _narrow(y * g * s)
            gate_up_grad[t, i] = _narrow(
                y * _wide(gate_up[t, width + i]) * s * (_ONE + g * (_ONE - s))
            )


@_compiled
def rotate_heads(rows, first, cosines, sines, heads):
    """Heads of each token, rotated to its position.

    Args:
        rows: bfloat16 [streams, steps, all heads, dim]; first: the first head wanted;
        cosines, sines: float32 [steps, dim / 2], or [0, 0] to leave them as they are;
        heads: bfloat16 [streams, heads, steps, dim], the result.
    """
    streams, count, steps, dim = heads.shape
    half = dim // 2
    for s in range(streams):
        for h in range(count):
            for t in range(steps):
                source = rows[s, t, first + h]
                target = heads[s, h, t]
                if cosines.shape[0]:
                    for i in range(half):
                        a, b = _wide(source[i]), _wide(source[half + i])
                        c, d = cosines[t, i], sines[t, i]
                        target[i] = _narrow(a * c - b * d)
                        target[half + i] = _narrow(b * c + a * d)
                else:
                    for i in range(dim):
                        target[i] = source[i]


@_compiled
def rotate_heads_back(heads, first, cosines, sines, rows):
    """The gradient of rotate_heads; heads: float32 [streams, heads, steps, dim]."""
    streams, count, steps, dim = heads.shape
    half = dim // 2
    for s in range(streams):
        for h in range(count):
            for t in range(steps):
                source = heads[s, h, t]
                target = rows[s, t, first + h]
                if cosines.shape[0]:
                    for i in range(half):
                        a, b = source[i], source[half + i]
                        c, d = cosines[t, i], sines[t, i]
                        target[i] = _narrow(a * c + b * d)
                        target[half + i] = _narrow(b * c - a * d)
                else:
                    for i in range(dim):
                        target[i] = _narrow(source[i])


@_compiled
def attention_gradients(scores, score_grads, block, ahead, window):
    """Turn log-probabilities into probabilities, and their gradients into those of the scores.

    Args:
        scores: bfloat16 [rows, keys], score minus log of its row's sum, becomes probability;
        score_grads: bfloat16 [rows, keys], gradient of the probability minus its row's mean,
        becomes probability times that; row i stands where key ahead + i % block does, sees no key
        beyond, and as many as its window has.
    """
    for i in range(len(scores)):
        end = ahead + i % block + 1
        start = max(0, end - window)
        scores[i, :start] = 0
        score_grads[i, :start] = 0
        # Counted from 0, so that the compiler sees that no index is negative.
        row, row_grads = scores[i, start:end], score_grads[i, start:end]
        for j in range(len(row)):
            p = _exp(_wide(row[j]))
            row[j] = _narrow(p)
            row_grads[j] = _narrow(p * _wide(row_grads[j]))
        scores[i, end:] = 0
        score_grads[i, end:] = 0


@_inlined
def _turned(source, cosines, sines, target):
    """A bfloat16 vector turned back by an angle, as float32."""
    half = len(source) // 2
    for i in range(half):
        a, b = _wide(source[i]), _wide(source[half + i])
        target[i] = a * cosines[i] + b * sines[i]
        target[half + i] = b * cosines[i] - a * sines[i]


@_inlined
def _dot(wide, narrow):
    """The product of a float32 vector and a bfloat16 one."""
    total = np.float32(0.0)
    for i in range(len(wide)):
        total += wide[i] * _wide(narrow[i])
    return total


@_compiled
def add_sinks(query, key, value, chosen, window, sinks, cosines, sines, mixed, log_sums):
    """Add the sinks outside the window to attention inside it.

    Args:
        query, mixed: bfloat16 [groups, each, steps, dim]; key, value: bfloat16 [groups, steps,
        dim]; log_sums: float32 [groups, each, steps]; chosen: int64, the groups to change;
        cosines, sines: float32 [steps - window, dim / 2], by what queries are turned back.
    """
    _, each, steps, dim = query.shape
    scale = _ONE / np.sqrt(np.float32(dim))
    turned = np.empty(dim, np.float32)
    scores = np.empty(sinks, np.float32)
    for g in chosen:
        for h in range(each):
            for t in range(window, steps):
                row = t - window
                count = min(sinks, row + 1)
                _turned(query[g, h, t], cosines[row], sines[row], turned)
                greatest = log_sums[g, h, t]
                for s in range(count):
                    scores[s] = _dot(turned, key[g, s]) * scale
                    greatest = max(greatest, scores[s])
                inside = _exp(log_sums[g, h, t] - greatest)
                total = inside
                for s in range(count):
                    scores[s] = _exp(scores[s] - greatest)
                    total += scores[s]
                log_sums[g, h, t] = greatest + np.log(total)
                share = _ONE / total
                target = mixed[g, h, t]
                for i in range(dim):
                    turned[i] = _wide(target[i]) * inside
                for s in range(count):
                    given, weight = value[g, s], scores[s]
                    for i in range(dim):
                        turned[i] += weight * _wide(given[i])
                for i in range(dim):
                    target[i] = _narrow(turned[i] * share)


@_compiled
def add_sinks_back(
    query, key, value, chosen, window, sinks, cosines, sines, log_sums, grad, means,
    query_grad, key_grad, value_grad,
):  # fmt: skip
    """Add the gradients of what add_sinks added.

    Args:
        grad: bfloat16 [groups, each, steps, dim], of the result; means: float32 [groups, each,
        steps], its product with the result; query_grad: float32 [groups, each, steps, dim];
        key_grad, value_grad: float32 [groups, steps, dim]; the others as for add_sinks.
    """
    _, each, steps, dim = query.shape
    half = dim // 2
    scale = _ONE / np.sqrt(np.float32(dim))
    turned, asked = np.empty(dim, np.float32), np.empty(dim, np.float32)
    blamed = np.empty(dim, np.float32)
    for g in chosen:
        for h in range(each):
            for t in range(window, steps):
                row = t - window
                _turned(query[g, h, t], cosines[row], sines[row], turned)
                for i in range(dim):
                    blamed[i] = _wide(grad[g, h, t, i])
                    asked[i] = np.float32(0.0)
                for s in range(min(sinks, row + 1)):
                    answer = key[g, s]
                    share = _exp(_dot(turned, answer) * scale - log_sums[g, h, t])
                    slope = share * (_dot(blamed, value[g, s]) - means[g, h, t]) * scale
                    into_key, into_value = key_grad[g, s], value_grad[g, s]
                    for i in range(dim):
                        into_value[i] += share * blamed[i]
                        into_key[i] += slope * turned[i]
                        asked[i] += slope * _wide(answer[i])
                target = query_grad[g, h, t]
                for i in range(half):
                    a, b = asked[i], asked[half + i]
                    c, d = cosines[row, i], sines[row, i]
                    target[i] += a * c - b * d
                    target[half + i] += b * c + a * d


@_compiled
def cross_entropy(logits, targets, nats, gradient):
    """nats = log of the sum of exp(logits), less the target's; gradient = probability - [target].

    Args:
        logits, gradient: bfloat16 [rows, vocab], may be the same array; targets: int64 [rows];
        nats: float32 [rows].
    """
    rows, vocab = logits.shape
    for t in range(rows):
        wanted = _wide(logits[t, targets[t]])
        greatest = np.float32(-3e38)
        for i in range(vocab):
            greatest = max(greatest, _wide(logits[t, i]))
        total = np.float32(0.0)
        for i in range(vocab):
            total += _exp(_wide(logits[t, i]) - greatest)
        nats[t] = np.log(total) + greatest - wanted
        share = _ONE / total
        for i in range(vocab):
            gradient[t, i] = _narrow(_exp(_wide(logits[t, i]) - greatest) * share)
        hit = np.exp(wanted - greatest) * share - _ONE
        gradient[t, targets[t]] = _narrow(hit)

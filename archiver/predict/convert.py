"""Source weights to a model package: folded, rotated, quantized to int8, with exact arithmetic.

Rotating the residual stream by an orthogonal matrix (incoherence processing, as in QuIP# and
QuaRot) spreads outliers over all channels, so that 8 bits suffice for every activation. The norm
gains go into the weights that follow them, the rotation into both sides of every matrix:

    embed' = embed Q        qkv' = (qkv * gain1) Q      o' = Q^T o (I x R)    v' = R^T v
    head'  = (head * gain) Q   gate_up' = (gate_up * gain2) Q     down' = Q^T down D

Q, R and D have entries of +1 and -1 up to one scale. Where the norms subtract a mean, every matrix
that writes to the stream loses its mean over the stream's channels instead (as in SliceGPT), and
the norm's bias goes through the matrix after it into that one's bias. Where the outputs of
attention and feed-forward are normalized, Q is the engine's own transform with signs. Every product
is computed on integers carried in binary64 whose sums stay below 2^53, or in int64, so the package
is the same on every machine whatever the order of summation; everybody's package of the same
weights has one fingerprint.

Source: FORMAT.md, "Model packages".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from archiver.errors import InvalidModelError
from archiver.predict.architectures import JOINED, Architecture, architecture_of
from archiver.predict.engine_config import ADDEND_MAX
from archiver.predict.folding import (
    balancing_factors,
    centred,
    product_with,
    quantize_rows,
    rotate_right,
    turned_first,
)
from archiver.predict.package import SCALE_MAX, SCALE_MIN
from archiver.predict.tables import (
    LOG2_E,
    activation_rotation,
    activation_span,
    hadamard,
    rotary_tables,
    rotation,
    stream_signs,
)
from archiver.text.vocabulary import sort_tokens
from archiver.types import Float64Array, Int8Array

if TYPE_CHECKING:
    from archiver.predict.sources import SourceConfig, SourceModel


def stream_rotation(family: Architecture, hidden: int) -> tuple[Int8Array, int]:
    """Signs of the rotation of what the stream's norms give, int8 [hidden, hidden], and entries in
    each row; the stream itself is rotated likewise, or not at all with norms of outputs."""
    if not family.output_norms:
        return rotation(hidden)
    # The engine turns what is normalized by its transform, after gains with signs.
    blocks, terms = activation_rotation(hidden)
    return np.ascontiguousarray(stream_signs(hidden)[:, None] * blocks), terms


def convert(
    source: SourceModel, progress: Callable[[str, int, int], None] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The arrays and the configuration of the model package made from a source model.

    Returns:
        arrays: by name, as FORMAT.md, "Model packages", lists them; config: plain JSON values.

    Raises:
        InvalidModelError: weights that are not finite or absurdly large, sizes the engine lacks.
    """
    converter = _Converter(source)
    converter.put_vocabulary()
    layers = source.config.layers
    for number in range(layers):
        if progress:
            progress("converting", number, layers)
        converter.put_attention(f"layers.{number}")
        converter.put_feed_forward(f"layers.{number}")
    if progress:
        progress("converting", layers, layers)
    converter.put_tables()
    return converter.arrays, converter.plain_config()


def _check_sizes(config: SourceConfig, family: Architecture) -> None:
    if activation_span(config.ffn) < 16:
        raise InvalidModelError(f"a feed-forward size of {config.ffn} is not a multiple of 16")
    if family.output_norms and activation_span(config.hidden) < 16:
        raise InvalidModelError(f"a hidden size of {config.hidden} is not a multiple of 16")
    if config.head_dim % 16 or config.heads % config.kv_heads:
        raise InvalidModelError(
            f"heads of {config.head_dim} dimensions ({config.heads} query, {config.kv_heads} "
            "key/value heads): the engine needs a multiple of 16, and query heads a multiple of "
            "key/value heads"
        )


class _Converter:
    """A source model on its way into a package.

    Attributes:
        arrays: what is done, by the package's names.
    """

    def __init__(self, source: SourceModel) -> None:
        config = source.config
        self._source, self._config = source, config
        self._family = architecture_of(config.architecture)
        _check_sizes(config, self._family)
        self._signs, self._terms = stream_rotation(self._family, config.hidden)
        signs = hadamard(config.head_dim)
        self._head_rotation: tuple[Int8Array, int] = (
            (np.eye(config.head_dim, dtype=np.int8), 1)
            if signs is None
            else (signs, config.head_dim)
        )
        self._rotary_dims = config.head_dim if config.rotary_dims is None else config.rotary_dims
        self.arrays: dict[str, np.ndarray] = {}

    def put_vocabulary(self) -> None:
        """Tokens, embeddings, positions and head."""
        source, config, family = self._source, self._config, self._family
        data, offsets, rank_of_id = sort_tokens(source.token_bytes)
        id_of_rank = np.full(len(offsets) - 1, -1, np.int64)
        coded = rank_of_id >= 0
        id_of_rank[rank_of_id[coded]] = np.flatnonzero(coded)
        self.arrays |= {
            "tokens.data": data, "tokens.offsets": offsets, "tokens.rank_of_id": rank_of_id,
        }  # fmt: skip
        # float32 as long as possible: the two matrices may be most of the model.
        embed = source.tensors["embed"]
        rows = embed[np.append(id_of_rank, source.start_token_id)].astype(np.float64)
        if family.scaled_embedding:
            rows *= math.sqrt(config.hidden)
        self._put("embed", self._added(rows))
        del rows
        head = (embed if config.tied else source.tensors["head"])[id_of_rank].astype(np.float64)
        self._put_reading("head", head, "norm", LOG2_E)
        if "head" in family.biased:
            self._put_vector("head.biases", product_with(head, self._tensor("norm.bias")) * LOG2_E)
        if family.positions:
            self._put_vector("positions", self._added(self._tensor("positions")))

    def put_attention(self, name: str) -> None:
        """Queries, keys, values and output of one layer."""
        config, family = self._config, self._family
        parts = [self._tensor(f"{name}.{part}") for part in "qkv"]
        gain = self._tensor(f"{name}.norm1")
        if "qkv" in family.biased:
            biases = [self._tensor(f"{name}.{part}.bias") for part in "qkv"]
            if family.centred:
                before = self._tensor(f"{name}.norm1.bias")
                for bias, weights in zip(biases, parts, strict=True):
                    bias += product_with(weights, before)
            for number, factors in enumerate(self._balanced(parts, biases, gain)):
                parts[number] *= factors[:, None]
                biases[number] *= factors
            self._put_vector(f"{name}.qkv.biases", self._joined_heads(biases))
        self._put_reading(f"{name}.qkv", self._joined_heads(parts), f"{name}.norm1")
        if family.head_norms:
            for part, kind in (("q", "query"), ("k", "key")):
                gains = self._by_pairs(self._tensor(f"{name}.{part}_norm"))
                self._put_vector(f"{name}.{kind}_gains", gains)
        output = self._tensor(f"{name}.o").reshape(-1, config.head_dim)
        output = rotate_right(output, *self._head_rotation)
        self._put_writing(f"{name}.o", output.reshape(config.hidden, -1))

    def put_feed_forward(self, name: str) -> None:
        """What comes before and after the activation of one layer."""
        family = self._family
        kinds = JOINED.get(family.up, (family.up,))
        joined = np.concatenate([self._tensor(f"{name}.{kind}") for kind in kinds])
        self._put_reading(f"{name}.{family.up}", joined, f"{name}.norm2")
        if "up" in family.biased:
            before = product_with(joined, self._tensor(f"{name}.norm2.bias"))
            own = self._tensor(f"{name}.up.bias")
            self._put_vector(f"{name}.{family.up}.biases", own + before)
        # The running rotation is not divided by sqrt(terms), so the weights are, twice.
        signs, terms = activation_rotation(self._config.ffn)
        down = rotate_right(self._tensor(f"{name}.down"), signs, terms)
        self._put_writing(f"{name}.down", down / math.sqrt(terms))

    def put_tables(self) -> None:
        """Which heads are local, which layers slide, and angles of rotations."""
        config = self._config
        local_heads = config.local_heads or ((0,) * config.kv_heads,) * config.layers
        self.arrays["local_heads"] = np.array(local_heads, np.uint8)
        fine, coarse = rotary_tables(config.rope_theta, config.head_dim, self._rotary_dims)
        self.arrays["rotary.fine"], self.arrays["rotary.coarse"] = fine, coarse
        if config.sliding is not None:
            self.arrays["sliding_layers"] = np.array(config.sliding.layers, np.uint8)
            fine, coarse = rotary_tables(config.sliding.rope_theta, config.head_dim)
            self.arrays["rotary.sliding_fine"] = fine
            self.arrays["rotary.sliding_coarse"] = coarse

    def plain_config(self) -> dict[str, object]:
        """The package's configuration."""
        config, tokens = self._config, len(self.arrays["tokens.offsets"]) - 1
        result: dict[str, object] = {
            "architecture": config.architecture,
            "hidden": config.hidden,
            "layers": config.layers,
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "ffn": config.ffn,
            "norm_epsilon": config.norm_eps,
            "tokens": tokens,
            "start_token": tokens,
        }
        if config.sliding is not None:
            result["sliding_tokens"] = config.sliding.tokens
        if self._family.positions:
            result["positions"] = config.context_length
        return result

    def _tensor(self, name: str) -> Float64Array:
        return self._source.tensors[name].astype(np.float64)

    def _turn(self, weights: Float64Array) -> Float64Array:
        """Rows in the stream's rotated basis."""
        return rotate_right(weights, self._signs, self._terms)

    def _added(self, rows: Float64Array) -> Float64Array:
        """Rows of what is added to the stream, as the package has the stream."""
        rows = centred(rows) if self._family.centred else rows
        return rows if self._family.output_norms else self._turn(rows)

    def _joined_heads(self, parts: Sequence[Float64Array]) -> Float64Array:
        """Rows of queries, keys and values by head, as attention has them."""
        query, key, value = parts
        heads_rows = value.reshape(self._config.kv_heads, self._config.head_dim, -1)
        turned = np.stack([rotate_right(v.T, *self._head_rotation).T for v in heads_rows])
        turned = turned.reshape(value.shape)
        return np.concatenate([self._by_pairs(query), self._by_pairs(key), turned])

    def _balanced(
        self, parts: Sequence[Float64Array], biases: Sequence[Float64Array], gain: Float64Array
    ) -> tuple[Float64Array, Float64Array]:
        """Factors of the rows of queries and keys, which their biases may make very unequal."""
        config = self._config
        typical = math.sqrt(config.hidden) / 4  # of a row's product with a normalized vector
        queries, keys = (
            self._by_pairs(np.abs(bias) + np.abs(weights * gain).max(axis=1) * typical)
            for weights, bias in zip(parts[:2], biases[:2], strict=True)
        )
        factors = balancing_factors(queries, keys, config.kv_heads, config.head_dim)
        return self._from_pairs(factors[0]), self._from_pairs(factors[1])

    def _from_pairs(self, rows: Float64Array) -> Float64Array:
        """The inverse of `_by_pairs`."""
        places = turned_first(self._config.head_dim, self._rotary_dims)
        heads_rows = rows.reshape(-1, self._config.head_dim)
        return heads_rows[:, np.argsort(places)].reshape(rows.shape)

    def _by_pairs(self, rows: Float64Array) -> Float64Array:
        """Rows of every head of queries or keys, in the engine's order of dimensions."""
        places = turned_first(self._config.head_dim, self._rotary_dims)
        heads_rows = rows.reshape(-1, self._config.head_dim, *rows.shape[1:])
        return heads_rows[:, places].reshape(rows.shape)

    def _put(self, name: str, weights: Float64Array, factor: float = 1.0) -> None:
        codes, scales = quantize_rows(weights)
        scales = (scales.astype(np.float64) * factor).astype(np.float32)
        if not ((scales >= SCALE_MIN) & (scales <= SCALE_MAX)).all():
            raise InvalidModelError(f"{name}: a scale is out of range")
        self.arrays[f"{name}.codes"], self.arrays[f"{name}.scales"] = codes, scales

    def _put_vector(self, name: str, vector: Float64Array) -> None:
        if not (np.abs(vector) <= ADDEND_MAX).all():
            raise InvalidModelError(f"{name}: a number is out of range")
        self.arrays[name] = vector.astype(np.float32)

    def _put_reading(
        self, name: str, weights: Float64Array, norm: str, factor: float = 1.0
    ) -> None:
        """A matrix that multiplies what a norm of the stream gives."""
        gains = self._tensor(norm)
        if self._family.output_norms:
            turned = gains * stream_signs(self._config.hidden) / math.sqrt(self._terms)
            self._put_vector(f"{name}.gains", turned)
            self._put(name, self._turn(weights), factor)
        else:
            self._put(name, self._turn(weights * gains), factor)

    def _put_writing(self, name: str, weights: Float64Array) -> None:
        """A matrix whose outputs are added to the stream, at once or when they are normalized."""
        family = self._family
        if family.output_norms:
            self._put_vector(f"{name}.gains", self._tensor(f"{name}_norm"))
        else:
            weights = np.ascontiguousarray(self._added(weights.T).T)
        self._put(name, weights)
        if name.rpartition(".")[2] in family.biased:
            biases = self._added(self._tensor(f"{name}.bias")[None])
            self._put_vector(f"{name}.biases", biases[0])

"""Streams that advance together through the exact transformer, on the processor.

    tokens ── embed ── x ─┬─ normalize ── qkv ── project_heads ── attend ── o ──┬─ + ─┐
                          └─────────────────────────────────────────────────────┘    │ x layers
                        ┌─┬─ normalize ── gate_up ── gate_and_rotate ── down ── + ─┬──┘
                        │ └────────────────────────────────────────────────────────┘
                        └─ normalize ── head ── products over the vocabulary

That is the Llama family; `architectures` tells what others add, and `kernels.families` computes it.

A whole block of one stream, or one step of many streams, takes the same path; a row's result
depends on its own stream's earlier tokens only. FORMAT.md defines the result, and
`tests/reference` is a slow decoder written from it.

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from archiver.predict.engine_base import STREAM_TOKENS_MAX
from archiver.predict.kernels import attention, families, layers, tiled_attention
from archiver.predict.kernels.memory import aligned_empty, aligned_zeros
from archiver.predict.kernels.tiles import ROW_SHAPES, TILE_BYTES
from archiver.types import Float32Array, Int8Array, Int32Array, UInt8Array

if TYPE_CHECKING:
    from archiver.predict.engine import Engine


Caches: TypeAlias = list[tuple[UInt8Array, Int8Array, Float32Array, Float32Array]]
"""Keys, values and their scales by layer; `attention` describes the layout."""


def _caches(engine: Engine, shapes: Sequence[tuple[int, ...]]) -> Caches:
    """Empty keys, values and scales of layers with these numbers of slots, the last axis."""
    # One allocation for all layers: large ones get large pages, which halves the time that a
    # step of many streams takes to read them.
    sizes = [math.prod(shape) for shape in shapes]

    def parts(items: int, dtype: type[np.generic]) -> list[NDArray[Any]]:
        flat = aligned_zeros((sum(sizes) * items,), dtype)
        ends = np.cumsum(sizes) * items
        return [
            flat[end - size * items : end].reshape(*shape[:-1], shape[-1] * items)
            for end, size, shape in zip(ends.tolist(), sizes, shapes, strict=True)
        ]

    dim = engine.head_dim
    return list(
        zip(
            parts(dim, np.uint8), parts(dim, np.int8), parts(1, np.float32), parts(1, np.float32),
            strict=True,
        )
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rows:
    """What a number of rows come to on their way through a layer; every layer writes it anew.

    Attributes:
        x: float32 [rows, hidden], the residual stream.
        codes, scales: of its norm, int8 [rows, hidden] and float32 [rows].
        query .. sink_query_scale: as `attention.attend` takes them.
        attended: float32 [rows, heads * head_dim]; attended_codes: int8, the same shape.
        activated_codes: int8 [rows, ffn]; inner_scales: float32 [rows], of these or those.
        room: float32, for the largest product.
    """

    x: Float32Array
    codes: Int8Array
    scales: Float32Array
    query: Int8Array
    query_scale: Float32Array
    sink_query: Int8Array
    sink_query_scale: Float32Array
    attended: Float32Array
    attended_codes: Int8Array
    activated_codes: Int8Array
    inner_scales: Float32Array
    room: Float32Array

    @classmethod
    def of(cls, engine: Engine, rows: int) -> _Rows:
        queries = (rows, engine.heads, engine.head_dim)
        width = engine.heads * engine.head_dim
        layer = engine.layers[0]
        widest = max(len(of.scales) for of in (layer.qkv, layer.o, layer.up, layer.down))
        return cls(
            x=aligned_empty((rows, engine.hidden), np.float32),
            codes=aligned_empty((rows, engine.hidden), np.int8),
            scales=np.empty(rows, np.float32),
            query=aligned_empty(queries, np.int8),
            query_scale=np.empty(queries[:2], np.float32),
            sink_query=aligned_empty(queries, np.int8),
            sink_query_scale=np.empty(queries[:2], np.float32),
            attended=aligned_empty((rows, width), np.float32),
            attended_codes=aligned_empty((rows, width), np.int8),
            activated_codes=aligned_empty((rows, engine.ffn), np.int8),
            inner_scales=np.empty(rows, np.float32),
            room=aligned_empty((rows * widest,), np.float32),
        )


class Session:
    """The state of some streams that advance together: their keys and values.

    Attributes:
        position: where the next token of every stream stands, counted from the last restart.
        sinks: keys and values of the first positions.
    """

    def __init__(self, engine: Engine, *, streams: int, tokens: int, steps: int) -> None:
        """Caches for `streams` streams that hold nothing but the engine's soft prompt.

        Args:
            tokens: the longest stream's length, at most STREAM_TOKENS_MAX with the soft prompt.
            steps: the most tokens a stream that one call of `advance` brings.
        """
        assert tokens >= 1
        assert engine.lead + tokens <= STREAM_TOKENS_MAX
        if engine.segment is not None:
            self._recent = np.zeros((streams, engine.segment), np.int32)
        self.engine = engine
        self.streams = streams
        self.position = 0
        # Blocks of consecutive rows go through tile registers, where there are any.
        tiled = steps >= 8 and engine.head_dim % TILE_BYTES == 0 and engine.backend.tiled
        unit = tiled_attention.TILED_POSITIONS if tiled else 16
        rings = engine.cache_slots(streams=streams, tokens=tokens, steps=steps, unit=unit)
        self.slots = np.zeros((len(engine.layers), engine.kv_heads + 1), np.int32)
        np.cumsum(rings, axis=1, out=self.slots[:, 1:])
        self.caches = _caches(engine, [(streams, total) for total in self.slots[:, -1].tolist()])
        sink_ring = max(unit, -(-engine.sinks // unit) * unit)
        self.sinks = _caches(engine, [(streams, engine.kv_heads, sink_ring)] * len(engine.layers))
        positions = engine.lead + min(tokens, engine.segment or tokens)
        window = min(positions, engine.window)
        group = engine.heads // engine.kv_heads
        if tiled:
            rows, queries = tiled_attention.TILED_ROWS, tiled_attention.TILED_ROWS
            items = tiled_attention.tiled_items(window, engine.sinks)
        else:
            rows, queries = attention.TOGETHER * group, attention.VALUE_ROWS * group
            items = attention.visible_items(window, engine.sinks)
        self._attend = tiled_attention.attend_by_tiles if tiled else attention.attend
        self.scratch: tuple[Any, ...] = (
            aligned_zeros((rows, items), np.int32),
            aligned_zeros((2, items), np.float32),
            aligned_zeros((2, queries, items), np.uint8),
        )
        if tiled:
            self.scratch += (ROW_SHAPES,)
        self.rows = _Rows.of(engine, streams * steps)
        self.angles = engine.rotary(max(positions, engine.window + engine.sinks))
        if engine.prompt_sinks is not None:
            self._adopt(engine.prompt_sinks)

    def _adopt(self, prompt: Caches) -> None:
        """The soft prompt's keys and values, computed once, stand at every stream's beginning.

        They come in whole tiles of 16 positions; what such a tile holds beyond the prompt is
        written before it is seen. Where the ring is shorter than the prompt, later tiles take
        the place of earlier ones, as `advance` has it.
        """
        self.position = self.engine.lead
        lead = self.engine.lead
        for layer, theirs in enumerate(prompt):
            slots = self.slots[layer]
            arrays = (self.caches[layer], self.sinks[layer], theirs)
            triples = zip(*cast(Sequence[Sequence[NDArray[Any]]], arrays), strict=True)
            for mine, sinks, source in triples:
                # A tile's items: 16 times head_dim of keys and of values, 16 scales.
                tile = 16 * source.shape[-1] // theirs[-1].shape[-1]
                for kv, number in itertools.product(range(len(slots) - 1), range(-(-lead // 16))):
                    begin = number * tile
                    content = source[:, kv, begin : begin + tile]
                    sinks[:, kv, begin : begin + tile] = content
                    ring = (slots[kv + 1] - slots[kv]) // 16
                    at = (slots[kv] // 16 + number % ring) * tile
                    mine[:, at : at + tile] = content

    def advance(self, tokens: Int32Array) -> tuple[Int8Array, Float32Array]:
        """Every stream is `steps` tokens further.

        Args:
            tokens: int32 [streams, steps], embedding rows.

        Returns:
            the normalized last hidden states, stream by stream: int8 codes
            [streams * steps, hidden] and their scales, float32 [streams * steps].
        """
        segment, lead = self.engine.segment, self.engine.lead
        if segment is None:
            return self._read(tokens)
        streams, steps = tokens.shape
        codes = np.empty((streams, steps, self.engine.hidden), np.int8)
        scales = np.empty((streams, steps), np.float32)
        done = 0
        while done < steps:
            if self.position == lead + segment:
                self._restart(segment)
            place = self.position - lead
            last = min(steps, done + segment - place)
            part = np.ascontiguousarray(tokens[:, done:last])
            self._recent[:, place : place + last - done] = part
            found_codes, found_scales = self._read(part)
            codes[:, done:last] = found_codes.reshape(streams, last - done, -1)
            scales[:, done:last] = found_scales.reshape(streams, -1)
            done = last
        return codes.reshape(streams * steps, -1), scales.reshape(-1)

    def _restart(self, segment: int) -> None:
        """Every stream's cache holds the soft prompt, and the last half of the segment read again.

        What lies at later positions is written before it is seen.
        """
        overlap = segment // 2
        again = self._recent[:, segment - overlap :].copy()
        self._recent[:, :overlap] = again
        self.position = self.engine.lead
        if self.engine.prompt_sinks is not None:
            self._adopt(self.engine.prompt_sinks)
        tokens = self.engine.reread_tokens(self.streams)
        for start in range(0, overlap, tokens):
            self._read(np.ascontiguousarray(again[:, start : start + tokens]))

    def _read(self, tokens: Int32Array) -> tuple[Int8Array, Float32Array]:
        """`advance` within a segment."""
        engine = self.engine
        streams, steps = tokens.shape
        assert streams == self.streams
        rows = streams * steps
        row_stream = np.repeat(np.arange(streams, dtype=np.int32), steps)
        row_position = np.tile(
            np.arange(self.position, self.position + steps, dtype=np.int32), streams
        )
        if len(self.rows.x) != rows:
            self.rows = _Rows.of(engine, rows)
        mine = self.rows
        x, codes, scales, inner_scales = mine.x, mine.codes, mine.scales, mine.inner_scales
        queries = mine.query, mine.query_scale, mine.sink_query, mine.sink_query_scale

        layers.embed(tokens.reshape(-1), engine.embed_codes, engine.embed_scales, x)
        if engine.positions is not None:
            families.add_positions(x, engine.positions, row_position)
        for number, layer in enumerate(engine.layers):
            cache, sinks = self.caches[number], self.sinks[number]
            places = row_stream, row_position, engine.windows[number], self.slots[number]
            input_gains = layer.input_gains or (None, None)
            output_gains = layer.output_gains or (None, None)
            engine.normalize(x, input_gains[0], codes, scales)
            heads = layer.qkv(codes, scales, mine.room)
            if layer.head_gains is not None:
                families.normalize_heads(*heads, *layer.head_gains, engine.kv_heads, engine.epsilon)
                heads = layer.qkv.unscaled(heads[0])
            layers.project_heads(
                *heads, *self.angles[number], *places, engine.sinks, *queries, *cache, *sinks,
                engine.logit_unit,
            )  # fmt: skip
            self._attend(
                *queries, *cache, *sinks, *places, engine.layer_sinks(number), *self.scratch,
                mine.attended,
            )  # fmt: skip
            layers.quantize_rows(mine.attended, mine.attended_codes, inner_scales)
            attended = layer.o(mine.attended_codes, inner_scales, mine.room)
            engine.add(x, attended, output_gains[0])
            if not engine.family.parallel:
                engine.normalize(x, input_gains[1], codes, scales)
            up = layer.up(codes, scales, mine.room)
            engine.activate(up, mine.activated_codes, inner_scales)
            down = layer.down(mine.activated_codes, inner_scales, mine.room)
            engine.add(x, down, output_gains[1])
        # The caller's own, unlike the rest.
        last_codes = aligned_empty(codes.shape, np.int8)
        last_scales = np.empty_like(scales)
        engine.normalize(x, engine.head_gains, last_codes, last_scales)
        self.position += steps
        return last_codes, last_scales

"""The bare matrix products: the floor of llmzip's time, and the roofs over them.

A product of r rows does 2 r operations (a multiplication and an addition each) for every byte of
weights that it reads, because a weight is a byte: 2 r is its arithmetic intensity. Memory bounds
products of few rows, the arithmetic units those of many.

Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model
for multicore architectures", Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.predict.kernels.memory import aligned_empty
from archiver.predict.kernels.products import VnniProduct
from archiver.predict.team import own_outputs, shares_products, solo_members

if TYPE_CHECKING:
    from archiver.predict.engine import Engine
    from archiver.predict.linear import Linear
    from archiver.types import Int8Array

ROUNDS = 5  # of which the fastest counts
ROOF_ROWS = (1, 4, 16, 64, 128, 512)
READ_BYTES = 1 << 29  # of all threads together; several times any cache
SHAPES = ("qkv", "o", "up", "down", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """The products of groups of `rows` tokens, all layers one by one.

    Attributes:
        rows: of each product.
        groups: that multiply at the same time, each rows of its own; members: threads of each,
            every one with its own part of the weights.
        wall_s: of all, on all threads; shape_s: of each shape, a thread's mean.
        weight_bytes: that each shape reads, by name, all layers together.
    """

    rows: int
    groups: int
    members: int
    wall_s: float
    shape_s: dict[str, float]
    weight_bytes: dict[str, int]

    @property
    def intensity(self) -> int:
        """Operations for each byte of weights that is read."""
        return 2 * self.rows

    @property
    def tokens(self) -> int:
        """That go through all products."""
        return self.rows * self.groups

    @property
    def operations_per_s(self) -> float:
        """Of all threads together."""
        return 2 * self.tokens * sum(self.weight_bytes.values()) / self.wall_s

    def of_shape(self, name: str) -> float:
        """Return the operations a second of one shape's products, all threads together."""
        return 2 * self.tokens * self.weight_bytes[name] / self.shape_s[name]

    def as_dict(self) -> dict[str, Any]:
        """Return it in types that JSON has."""
        return {
            "rows": self.rows,
            "groups": self.groups,
            "members": self.members,
            "us_per_token": self.wall_s / self.tokens * 1e6,
            "intensity": self.intensity,
            "operations_per_s": self.operations_per_s,
            "operations_per_token": 2 * sum(self.weight_bytes.values()),
            "shapes": [
                {
                    "name": name,
                    "operations_per_token": 2 * size,
                    "weight_bytes": size,
                    "operations_per_s": self.of_shape(name),
                }
                for name, size in self.weight_bytes.items()
            ],
        }


def time_floor(engine: Engine, threads: int, streams: int) -> dict[str, Products]:
    """Time the products of one block and of one step.

    Args:
        threads: llmzip's; streams: of a frame.

    Returns:
        by direction; of the ways in which a step can be made, the quicker one.
    """
    ways = [time_products(engine, *way) for way in step_ways(engine, threads, streams)]
    return {
        "compress": time_products(engine, engine.block_tokens, threads),
        "decompress": min(ways, key=lambda way: way.wall_s / way.tokens),
    }


def step_ways(engine: Engine, threads: int, streams: int) -> list[tuple[int, int, int]]:
    """Rows, groups and members of each (see `Products`) of the products of a step."""
    if not shares_products(engine):
        groups = solo_members(threads, streams)
        return [(-(-streams // groups), groups, 1)]
    apart = min(threads, streams)
    return [(-(-streams // apart), apart, 1), (streams, 1, threads)]


def time_roofs(engine: Engine, threads: int, floor: Iterable[Products]) -> dict[str, Any]:
    """Time what bounds the products on this machine.

    Args:
        threads: of buffers and products; floor: products that were timed before, which count, too.

    Returns:
        "read_bytes_per_s", the more of "summed_bytes_per_s", of a large buffer, and of what
        products of one row read; "operations_per_s", the most that products of any shape and
        number of rows do; "products", of all shapes together, by rows.
    """
    curve = [time_products(engine, rows, threads) for rows in ROOF_ROWS]
    summed = read_speed(threads)
    fastest = max(found.of_shape(name) for found in (*curve, *floor) for name in SHAPES)
    return {
        "read_bytes_per_s": max(summed, curve[0].operations_per_s / curve[0].intensity),
        "summed_bytes_per_s": summed,
        "operations_per_s": fastest,
        "products": [found.as_dict() for found in curve],
    }


def read_speed(threads: int) -> float:
    """Return how many bytes a second threads read of buffers that no cache holds, in all."""
    parts = [np.ones(READ_BYTES // 8 // threads, np.int64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        times_s = []
        for _ in range(ROUNDS):
            started_s = time.perf_counter()
            sums = list(pool.map(np.sum, parts))
            times_s.append(time.perf_counter() - started_s)
    assert sums == [len(part) for part in parts]
    return sum(part.nbytes for part in parts) / min(times_s)


def time_products(engine: Engine, rows: int, groups: int, members: int = 1) -> Products:
    """Time the products that so many groups of `rows` tokens need at once.

    Args:
        members: threads of each group.
    """
    workers = groups * members
    benches = [_Bench(engine, rows, number % members, members) for number in range(workers)]
    best_s, best_shapes = float("inf"), dict[str, float]()
    with ThreadPoolExecutor(workers, initializer=engine.prepare_thread) as pool:
        for _ in range(ROUNDS):
            started_s = time.perf_counter()
            shapes = [job.result() for job in [pool.submit(bench.run) for bench in benches]]
            wall_s = time.perf_counter() - started_s
            if wall_s < best_s:
                best_s = wall_s
                best_shapes = {name: sum(s[name] for s in shapes) / workers for name in SHAPES}
    return Products(
        rows=rows, groups=groups, members=members, wall_s=best_s, shape_s=best_shapes,
        weight_bytes=benches[0].weight_bytes,
    )  # fmt: skip


class _Bench:
    """What one thread multiplies, in memory that is used again.

    Attributes:
        weight_bytes: by shape, all layers together, of all threads.
    """

    def __init__(self, engine: Engine, rows: int, number: int, members: int) -> None:
        """Args: of all outputs, the thread has those of the member `number` of so many."""
        self._number, self._members = number, members
        self._layers, self._head = engine.layers, engine.head
        self._inputs = {
            "qkv": engine.hidden, "o": engine.heads * engine.head_dim, "up": engine.hidden,
            "down": engine.ffn, "head": engine.hidden,
        }  # fmt: skip
        self._codes = {}
        for width in self._inputs.values():
            self._codes[width] = aligned_empty((rows, width), np.int8)
            self._codes[width][:] = 1
        self._room = aligned_empty((rows * engine.vocabulary.size,), np.float32)
        self.weight_bytes = dict.fromkeys(SHAPES, 0)
        for name, linear in self._products():
            self.weight_bytes[name] += len(linear.scales) * self._inputs[name]

    def _products(self) -> Iterator[tuple[str, Linear]]:
        """In the order in which tokens need them."""
        for layer in self._layers:
            yield "qkv", layer.qkv
            yield "o", layer.o
            yield "up", layer.up
            yield "down", layer.down
        yield "head", self._head

    def run(self) -> dict[str, float]:
        """Return the seconds of each shape's products, on codes of no meaning."""
        times_s = dict.fromkeys(SHAPES, 0.0)
        for name, linear in self._products():
            codes = self._codes[self._inputs[name]]
            started_s = time.perf_counter()
            self._multiply(linear, codes)
            times_s[name] += time.perf_counter() - started_s
        return times_s

    def _multiply(self, linear: Linear, codes: Int8Array) -> None:
        outputs = len(linear.scales)
        product = self._room[: len(codes) * outputs].reshape(len(codes), outputs)
        if self._members == 1:
            linear.product(codes, product)
            return
        assert isinstance(linear.product, VnniProduct)
        own = own_outputs(linear, self._number, self._members, linear.product.outputs_step)
        linear.product.multiply(codes, product, *own)

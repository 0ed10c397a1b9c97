"""Small files that turn published weights into tuned ones, exactly the same on every machine.

An adapter holds, for some of the joined matrices of a model, a product of two thin ones, and new
norm gains:

    W' = W + B A        B[o, c] = b[o, c] * step[c]     A[c, i] = a[c, i] * step[c]
    gain' = gain + delta * step

with whole numbers a, b and delta, and one float32 step for every component c.  The file is a tensor
file: steps as they are, all whole numbers in one range-coded array.  Names are those of joined
matrices: "layers.3.qkv" has the rows of q, k and v, "layers.3.gate_up" those of gate and up.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from archiver.errors import InvalidModelError, ModelMismatchError
from archiver.predict.architectures import JOINED, architecture_of
from archiver.predict.tensor_file import (
    little_endian_bytes,
    open_tensor_file,
    write_tensor_file,
)
from archiver.types import Float32Array, Float64Array, Int32Array, LocalHeads

if TYPE_CHECKING:
    from archiver.predict.sources import SourceConfig, SourceModel

CODE_MAX = (1 << 15) - 1
MAX_RANK = 256
# Products are taken of whole numbers below 2^22, so that sums of up to 2^8 stay below 2^53.
_FACTOR_BITS = 22
_STEP_MIN, _STEP_MAX = 2.0**-40, 2.0**8
_CODES = "codes"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRank:
    """The change of one joined matrix: B A.

    Attributes:
        a: int32 [rank, inputs], at most CODE_MAX in size; b: int32 [outputs, rank], likewise.
        steps: float32 [rank], what one unit stands for in either.
    """

    a: Int32Array
    b: Int32Array
    steps: Float32Array

    def delta(self) -> Float64Array:
        """B A, float64 [outputs, inputs], whatever the order of summation."""
        steps = self.steps.astype(np.float64)
        down, down_unit = _factor(self.a.astype(np.float64) * steps[:, None])
        up, up_unit = _factor(self.b.astype(np.float64) * steps)
        product: Float64Array = (up @ down) * (up_unit * down_unit)
        return product


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """All changes of a model.

    Attributes:
        low_rank: by joined matrix.
        gains: delta int32 [width] and step, by name of a norm.
        base_sha256: of the weights that it belongs to (``weights_sha256``).
        history: what was done, one line a step.
        local_heads: those that the model had while it was tuned, and has after.
    """

    low_rank: Mapping[str, LowRank]
    gains: Mapping[str, tuple[Int32Array, float]]
    base_sha256: str
    history: tuple[str, ...]
    local_heads: LocalHeads | None


def weights_sha256(source: SourceModel) -> str:
    """A hash of all weights of a model, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(source.tensors):
        digest.update(name.encode() + b"\0")
        digest.update(little_endian_bytes(source.tensors[name]))
    return digest.hexdigest()


def apply_adapter(source: SourceModel, adapter: Adapter) -> SourceModel:
    """The tuned model: weights are changed when they are asked for.

    Raises:
        ModelMismatchError: the adapter was made for other weights.
        InvalidModelError: it does not fit the model's shape.
    """
    from archiver.predict.sources import LazyTensors, expected_shapes

    if weights_sha256(source) != adapter.base_sha256:
        raise ModelMismatchError("the adapter was made for other weights")
    shapes = expected_shapes(source.config)
    places = _places(source.config)
    for name, change in adapter.low_rank.items():
        rows = sum(shapes[part][0] for part, _ in places.get(name, ()))
        inputs = shapes[places[name][0][0]][1] if name in places else 0
        if (change.b.shape[0], change.a.shape[1]) != (rows, inputs):
            raise InvalidModelError(f"the adapter's {name} does not fit the model")
    for name, (delta, _) in adapter.gains.items():
        if shapes.get(name) != delta.shape:
            raise InvalidModelError(f"the adapter's {name} does not fit the model")
    joined_of = {part: (name, rows) for name in adapter.low_rank for part, rows in places[name]}

    def read(name: str) -> Float32Array:
        weights = source.tensors[name]
        if name in joined_of:
            joined, rows = joined_of[name]
            change = adapter.low_rank[joined]
            part = dataclasses.replace(change, b=change.b[rows])
            weights = (weights.astype(np.float64) + part.delta()).astype(np.float32)
        elif name in adapter.gains:
            delta, step = adapter.gains[name]
            weights = (weights.astype(np.float64) + delta * step).astype(np.float32)
        return weights

    return dataclasses.replace(
        source,
        config=dataclasses.replace(source.config, local_heads=adapter.local_heads),
        tensors=LazyTensors(shapes, read),
        history=(*source.history, *adapter.history),
    )


def _places(config: SourceConfig) -> dict[str, list[tuple[str, slice]]]:
    """The tensors that each joined matrix consists of, and their rows in it."""
    from archiver.predict.sources import expected_shapes

    shapes = expected_shapes(config)
    places: dict[str, list[tuple[str, slice]]] = {}
    for layer in range(config.layers):
        for kind in ("qkv", "o", architecture_of(config.architecture).up, "down"):
            first = 0
            for part in JOINED.get(kind, (kind,)):
                name = f"layers.{layer}.{part}"
                last = first + shapes[name][0]
                places.setdefault(f"layers.{layer}.{kind}", []).append((name, slice(first, last)))
                first = last
    return places


def _factor(weights: Float64Array) -> tuple[Float64Array, float]:
    """Weights as whole numbers of at most _FACTOR_BITS bits, and their unit."""
    greatest = float(np.abs(weights).max(initial=0.0))
    exponent = _FACTOR_BITS - math.frexp(greatest)[1] if greatest > 0 else 0
    return np.rint(np.ldexp(weights, exponent)), math.ldexp(1.0, -exponent)


# --- files --------------------------------------------------------------------------------------


def write_adapter(path: Path, adapter: Adapter) -> None:
    """Write an adapter; the file depends on nothing but the adapter."""
    write_tensor_file(
        path,
        {**_small_arrays(adapter), _CODES: _coded(adapter)},
        {
            "base_sha256": adapter.base_sha256,
            "history": json.dumps(list(adapter.history)),
            "local_heads": json.dumps(adapter.local_heads),
        },
    )


def _small_arrays(adapter: Adapter) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, change in adapter.low_rank.items():
        arrays[f"{name}.steps"] = change.steps
        arrays[f"{name}.shape"] = np.array([change.b.shape[0], change.a.shape[1]], np.int32)
    for name, (delta, step) in adapter.gains.items():
        arrays[f"{name}.step"] = np.array([step], np.float32)
        arrays[f"{name}.shape"] = np.array(delta.shape, np.int32)
    return arrays


def _vectors(adapter: Adapter) -> list[Int32Array]:
    """Every run of whole numbers that is coded on its own, in the order of the file."""
    vectors: list[Int32Array] = []
    for name in sorted(adapter.low_rank):
        change = adapter.low_rank[name]
        vectors += [np.ascontiguousarray(row) for row in change.a]
        vectors += [np.ascontiguousarray(column) for column in change.b.T]
    return vectors + [adapter.gains[name][0] for name in sorted(adapter.gains)]


def _coded(adapter: Adapter) -> np.ndarray:
    from archiver.coding.signed import encode_vectors

    return np.frombuffer(encode_vectors(_vectors(adapter)), np.uint8)


def coded_bytes(adapter: Adapter) -> int:
    """How long the coded whole numbers are."""
    return len(_coded(adapter))


def _local_heads(given: object) -> LocalHeads | None:
    """What JSON holds; whether it fits a model is known when it is applied.

    Raises:
        ValueError: it is no table of whole numbers.
    """
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(row, list) for row in given):
        raise ValueError("no table")
    return tuple(tuple(map(int, row)) for row in given)


def read_adapter(path: Path) -> Adapter:
    """The adapter in a file.

    Raises:
        InvalidModelError: it is not one, or it is damaged.
    """
    from archiver.coding.signed import decode_vectors

    try:
        file = open_tensor_file(path)
        arrays = {name: np.array(array) for name, array in file.map().items()}
        history = json.loads(file.metadata["history"])
        base_sha256 = file.metadata["base_sha256"]
        local_heads = _local_heads(json.loads(file.metadata["local_heads"]))
    except OSError as error:
        raise InvalidModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidModelError(f"{path}: not an adapter") from error
    steps: dict[str, Float32Array] = {}
    gain_steps: dict[str, float] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for key, array in arrays.items():
        name, _, kind = key.rpartition(".")
        if kind == "steps" and array.dtype == np.float32 and 1 <= array.size <= MAX_RANK:
            steps[name] = array
        elif kind == "step" and array.dtype == np.float32 and array.size == 1:
            gain_steps[name] = float(array[0])
        elif kind == "shape" and array.dtype == np.int32 and array.ndim == 1:
            shapes[name] = tuple(array.tolist())
        elif key != _CODES:
            raise InvalidModelError(f"{path}: not an adapter (it holds {key})")
    for found in (*steps.values(), np.array(list(gain_steps.values()))):
        if not ((found >= _STEP_MIN) & (found <= _STEP_MAX)).all():
            raise InvalidModelError(f"{path}: a step is out of range")
    if (
        arrays.get(_CODES, np.empty(0)).dtype != np.uint8
        or set(shapes) != set(steps) | set(gain_steps)
        or not all(1 <= size <= 1 << 20 for shape in shapes.values() for size in shape)
        or not all(len(shapes[name]) == 2 for name in steps)
        or not all(len(shapes[name]) == 1 for name in gain_steps)
        or not isinstance(history, list)
        or not all(isinstance(line, str) for line in history)
    ):
        raise InvalidModelError(f"{path}: not an adapter, or a damaged one")
    lengths = []
    for name in sorted(steps):
        outputs, inputs = shapes[name]
        lengths += [inputs] * len(steps[name]) + [outputs] * len(steps[name])
    lengths += [shapes[name][0] for name in sorted(gain_steps)]
    vectors = iter(decode_vectors(arrays[_CODES], lengths))
    low_rank = {}
    for name in sorted(steps):
        rank = len(steps[name])
        a = np.stack([next(vectors) for _ in range(rank)])
        b = np.stack([next(vectors) for _ in range(rank)], axis=1)
        low_rank[name] = LowRank(a=a, b=b, steps=steps[name])
    gains = {name: (next(vectors), gain_steps[name]) for name in sorted(gain_steps)}
    adapter = Adapter(
        low_rank=low_rank,
        gains=gains,
        base_sha256=base_sha256,
        history=tuple(history),
        local_heads=local_heads,
    )
    if any(np.abs(vector).max(initial=0) > CODE_MAX for vector in _vectors(adapter)):
        raise InvalidModelError(f"{path}: a number is out of range")
    return adapter

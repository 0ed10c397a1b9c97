"""The GGUF container: metadata, and where each tensor's bytes lie.

The ``gguf`` library's reader loops over whatever array length a file claims and takes four
seconds for a vocabulary of 49,152; this one checks each count against the bytes that are left.
Only the arithmetic of the block formats is taken from the library.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_TENSORS = 1 << 17
MAX_FIELDS = 1 << 16
MAX_STRING_BYTES = 16 << 20
MAX_DIMENSIONS = 4
MAX_ALIGNMENT_BYTES = 1 << 16
DEFAULT_ALIGNMENT_BYTES = 32

# Value types of the metadata: struct codes of the scalars, and the two that are not.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
}  # fmt: skip
_STRING = 8
_ARRAY = 9

# Block formats by the number that a tensor's entry holds: their name in the library,
# weights a block, bytes a block.
BLOCK_FORMATS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor: its block format and its shape as numpy writes it ([out, in] for a matrix)."""

    block_format: str
    shape: tuple[int, ...]
    offset: int
    length_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """A GGUF file whose tensors are known to lie inside it."""

    path: Path
    fields: Mapping[str, object]
    tensors: Mapping[str, GgufTensor]

    def weights(self, name: str) -> NDArray[np.float32]:
        """Return one tensor dequantized, exactly as its block format defines it.

        The library computes element by element in binary32, a product rounded, then a sum
        rounded, so the result is the same on every machine.
        """
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        raw = np.fromfile(
            self.path, dtype=np.uint8, count=tensor.length_bytes, offset=tensor.offset
        )
        # Signalling NaNs in forged weights: they are refused by the caller, not warned about.
        with np.errstate(all="ignore"):
            rows = raw.reshape(*tensor.shape[:-1], -1)
            weights = dequantize(rows, GGMLQuantizationType[tensor.block_format])
        return np.asarray(weights, dtype=np.float32).reshape(tensor.shape)


def open_gguf(path: Path) -> GgufFile:
    """Return the checked metadata and tensor table of a GGUF file.

    Raises:
        InvalidModelError: it is not GGUF, of a version or byte order that is not supported, or
            some count, length or offset does not fit the file.
        OSError: the file cannot be read.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise InvalidModelError("not a GGUF file (nor a folder with safetensors)")
    cursor = _Cursor(np.memmap(path, dtype=np.uint8, mode="r"), position=4)
    version = cursor.scalar("I")
    if version not in VERSIONS:
        raise InvalidModelError(f"GGUF version {version} is not supported")
    tensor_count = cursor.count("Q", MAX_TENSORS, "tensors")
    field_count = cursor.count("Q", MAX_FIELDS, "metadata fields")
    fields: dict[str, object] = {}
    for _ in range(field_count):
        key = cursor.string()
        if key in fields:
            raise InvalidModelError(f"metadata field {key} occurs twice")
        fields[key] = cursor.value(int(cursor.scalar("I")))
    entries = [_read_entry(cursor) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT_BYTES:
        raise InvalidModelError(f"alignment is {alignment!r}")
    data_offset = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, tensor in entries:
        if name in tensors:
            raise InvalidModelError(f"tensor {name} occurs twice")
        if data_offset + tensor.offset + tensor.length_bytes > file_bytes:
            raise InvalidModelError(f"tensor {name} ends after the end of the file")
        tensors[name] = GgufTensor(
            block_format=tensor.block_format,
            shape=tensor.shape,
            offset=data_offset + tensor.offset,
            length_bytes=tensor.length_bytes,
        )
    return GgufFile(path=path, fields=fields, tensors=tensors)


def _read_entry(cursor: _Cursor) -> tuple[str, GgufTensor]:
    """Return the next tensor's name and entry; its offset still counts from the data's start."""
    name = cursor.string()
    dimensions = cursor.count("I", MAX_DIMENSIONS, "dimensions")
    shape = tuple(int(cursor.scalar("Q")) for _ in range(dimensions))[::-1]
    kind = int(cursor.scalar("I"))
    offset = int(cursor.scalar("Q"))
    if kind not in BLOCK_FORMATS:
        raise InvalidModelError(f"tensor {name} has block format {kind}, which is not supported")
    block_format, block_weights, block_bytes = BLOCK_FORMATS[kind]
    if not shape or min(shape) < 1 or shape[-1] % block_weights:
        raise InvalidModelError(f"tensor {name} has shape {shape}, impossible in {block_format}")
    return name, GgufTensor(
        block_format=block_format,
        shape=shape,
        offset=offset,
        length_bytes=math.prod(shape) // block_weights * block_bytes,
    )


class _Cursor:
    """Reads little-endian values one after the other and never past the end."""

    def __init__(self, data: NDArray[np.uint8], position: int) -> None:
        self._data = data.data
        self.position = position

    def take(self, length: int) -> memoryview:
        end = self.position + length
        if end > len(self._data):
            raise InvalidModelError("the GGUF file ends inside its metadata")
        part = self._data[self.position : end]
        self.position = end
        return part

    def scalar(self, code: str) -> int | float | bool:
        value: int | float | bool
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return value

    def count(self, code: str, largest: int, what: str) -> int:
        value = int(self.scalar(code))
        if value > largest:
            raise InvalidModelError(f"the file claims {value} {what}")
        return value

    def string(self) -> str:
        length = self.count("Q", MAX_STRING_BYTES, "bytes in a string")
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidModelError("a string of the metadata is not UTF-8") from error

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        raise InvalidModelError(f"metadata of type {kind} is not supported")

    def _array(self) -> list[object]:
        kind = int(self.scalar("I"))
        length = int(self.scalar("Q"))
        if kind == _STRING:
            # Every string has a length of 8 bytes before it.
            if length > (len(self._data) - self.position) // 8:
                raise InvalidModelError("an array of the metadata is longer than the file")
            return [self.string() for _ in range(length)]
        if kind not in _SCALARS:
            raise InvalidModelError(f"arrays of metadata type {kind} are not supported")
        layout = np.dtype("<" + _SCALARS[kind])
        items: list[object] = np.frombuffer(
            self.take(length * layout.itemsize), dtype=layout
        ).tolist()
        return items

"""Tensor files in the safetensors format, mapped into memory instead of read.

The ``safetensors`` library's numpy reader copies every tensor, so two programs that use one
package would hold two copies of it, and it has no bfloat16.  The format is a length, a JSON
header and bare bytes; reading it here gives views of the page cache and lets the header be
bounded before it is believed.

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError

# The library's own limit on the header (100 MB) less the slack: the largest real headers,
# of models with some 10^5 tensors, stay near 10 MB.
MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 1 << 17
MAX_DIMENSIONS = 8

# What a tensor's dtype is called in the file, and in numpy.  bfloat16 comes out as its bits.
DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}

_NAMES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}


def dtype_name(dtype: np.dtype[np.generic]) -> str:
    """Return the format's name of a numpy dtype, whatever its byte order.

    Raises:
        InvalidModelError: the format has no such type.
    """
    name = _NAMES.get(dtype.newbyteorder("<"))
    if name is None:
        raise InvalidModelError(f"arrays of type {dtype} cannot be stored")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies: ``dtype`` is the file's name of it, ``offset`` is from the start."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """A tensor file whose header has been checked against the file's size."""

    path: Path
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    def map(self) -> dict[str, NDArray[np.generic]]:
        """Return every tensor by name as a read-only view of one memory map of the file."""
        raw = np.memmap(self.path, dtype=np.uint8, mode="r")
        views: dict[str, NDArray[np.generic]] = {}
        for name, entry in self.entries.items():
            part = raw[entry.offset : entry.offset + entry.length_bytes]
            # A plain array whose base is the map: numpy arrays of class memmap are slower to slice.
            plain = part.view(np.ndarray)
            if entry.offset % DTYPES[entry.dtype].itemsize:
                plain = plain.copy()
                plain.setflags(write=False)
            views[name] = plain.view(DTYPES[entry.dtype]).reshape(entry.shape)
        return views


def open_tensor_file(path: Path) -> TensorFile:
    """Return the checked table of contents of a safetensors file.

    Every tensor is known to lie inside the file, with the length that its shape asks for, and
    no two overlap.

    Raises:
        InvalidModelError: the header is too long, not JSON of the right form, or does not fit
            the file.
        OSError: the file cannot be read.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise InvalidModelError(f"{path.name} is too short for a safetensors file")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise InvalidModelError(f"{path.name} claims a header of {header_bytes} bytes")
        header = stream.read(header_bytes)
    try:
        table = json.loads(header, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path.name} has a header that is not valid JSON") from error
    if not isinstance(table, dict) or len(table) > MAX_TENSORS:
        raise InvalidModelError(f"{path.name} has a header that is no table of tensors")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidModelError(f"{path.name} has malformed metadata")
    data_offset = 8 + header_bytes
    entries = {
        name: _checked_entry(path, name, fields, data_offset, file_bytes)
        for name, fields in table.items()
    }
    _check_layout(path, entries, data_offset, file_bytes)
    return TensorFile(path=path, entries=entries, metadata=metadata)


def write_tensor_file(
    path: Path, arrays: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str]
) -> None:
    """Write the arrays, sorted by item size and name, so that every one lies aligned.

    The file depends on nothing but the arguments.

    Raises:
        InvalidModelError: an array has a type that the format lacks.
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        array = arrays[name]
        span = [offset, offset + array.nbytes]
        table[name] = {
            "dtype": dtype_name(array.dtype), "shape": list(array.shape), "data_offsets": span
        }  # fmt: skip
        offset = span[1]
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % 64)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)))
        stream.write(header)
        for name in order:
            stream.write(little_endian_bytes(arrays[name]))


def little_endian_bytes(array: NDArray[np.generic]) -> memoryview:
    """Return the array's items in C order, little-endian, without copying where possible."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _checked_entry(
    path: Path, name: str, fields: object, data_offset: int, file_bytes: int
) -> TensorEntry:
    """Return the entry of one tensor, which lies inside the file and fits its own shape."""
    where = f"{path.name}: tensor {name!r}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise InvalidModelError(f"{where} has a malformed entry")
    dtype, shape, span = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InvalidModelError(f"{where} has the unsupported type {dtype!r}")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(_is_count(size) for size in shape)
    ):
        raise InvalidModelError(f"{where} has a malformed shape")
    if not isinstance(span, list) or len(span) != 2 or not all(_is_count(end) for end in span):
        raise InvalidModelError(f"{where} has malformed offsets")
    begin, end = span
    length_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != length_bytes or data_offset + end > file_bytes:
        raise InvalidModelError(f"{where} does not fit its shape or the file")
    return TensorEntry(
        dtype=dtype, shape=tuple(shape), offset=data_offset + begin, length_bytes=length_bytes
    )


def _check_layout(
    path: Path, entries: Mapping[str, TensorEntry], data_offset: int, file_bytes: int
) -> None:
    """Check that the tensors follow each other without gaps and fill the file."""
    position = data_offset
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.length_bytes)):
        if entry.offset != position:
            raise InvalidModelError(f"{path.name} has tensors that overlap or leave a gap")
        position += entry.length_bytes
    if position != file_bytes:
        raise InvalidModelError(f"{path.name} is longer than its tensors")

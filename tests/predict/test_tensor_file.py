"""Tensor files: what the safetensors library writes is mapped, what is malformed refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from archiver.errors import InvalidModelError
from archiver.predict.tensor_file import MAX_HEADER_BYTES, open_tensor_file, write_tensor_file

ARRAYS = {
    "bytes": np.arange(7, dtype=np.uint8),
    "codes": np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
    "scales": np.linspace(0, 1, 5, dtype=np.float32),
    "offsets": np.array([0, 2**40], dtype=np.int64),
    "nothing": np.empty((0, 3), dtype=np.int32),
    "scalar": np.array(2.5, dtype=np.float64),
}


def _write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_both_writers_and_both_readers_agree(tmp_path: Path) -> None:
    write_tensor_file(tmp_path / "ours", ARRAYS, {"key": "value"})
    save_file(ARRAYS, tmp_path / "theirs", metadata={"key": "value"})
    for path in (tmp_path / "ours", tmp_path / "theirs"):
        file = open_tensor_file(path)
        assert file.metadata == {"key": "value"}
        for found in (file.map(), load_file(path)):
            assert set(found) == set(ARRAYS)
            for name, array in ARRAYS.items():
                assert found[name].dtype == array.dtype
                assert found[name].shape == array.shape
                assert np.array_equal(found[name], array)


def test_the_file_depends_only_on_the_arrays(tmp_path: Path) -> None:
    write_tensor_file(tmp_path / "a", ARRAYS, {})
    write_tensor_file(tmp_path / "b", dict(reversed(ARRAYS.items())), {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_arrays_are_read_only_views_of_one_map(tmp_path: Path) -> None:
    write_tensor_file(tmp_path / "file", ARRAYS, {})
    views = open_tensor_file(tmp_path / "file").map()
    for view in views.values():
        assert not view.flags.writeable
        assert not view.flags.owndata
        base: object = view
        while isinstance(base, np.ndarray) and base.base is not None:
            last, base = base, base.base
        assert isinstance(last, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        views["codes"][0, 0] = 1


def test_strided_and_big_endian_arrays_are_stored_by_value(tmp_path: Path) -> None:
    strided = np.arange(24, dtype=np.int32).reshape(4, 6)[::2, ::3].T
    swapped = np.arange(5, dtype=">f4")
    write_tensor_file(tmp_path / "file", {"strided": strided, "swapped": swapped}, {})
    views = open_tensor_file(tmp_path / "file").map()
    assert np.array_equal(views["strided"], strided)
    assert np.array_equal(views["swapped"], swapped)
    with pytest.raises(InvalidModelError, match="cannot be stored"):
        write_tensor_file(tmp_path / "file", {"complex": np.zeros(2, np.complex64)}, {})


def _entry(**changes: object) -> dict[str, object]:
    return {"dtype": "I8", "shape": [4], "data_offsets": [0, 4], **changes}


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": _entry()}, b"123", "does not fit"),
        ({"a": _entry(data_offsets=[0, 5])}, b"12345", "does not fit"),
        ({"a": _entry(shape=[2**40, 2**40])}, b"1234", "does not fit"),
        ({"a": _entry(shape=[-1, -4])}, b"1234", "malformed shape"),
        ({"a": _entry(shape=[True] * 4)}, b"1234", "malformed shape"),
        ({"a": _entry(shape=[1] * 9)}, b"1", "malformed shape"),
        ({"a": _entry(data_offsets=[4, 0])}, b"1234", "does not fit"),
        ({"a": _entry(data_offsets=[0])}, b"1234", "malformed offsets"),
        ({"a": _entry(data_offsets=[0.0, 4.0])}, b"1234", "malformed offsets"),
        ({"a": _entry(dtype="F4")}, b"1234", "unsupported type"),
        ({"a": _entry(dtype=[])}, b"1234", "unsupported type"),
        ({"a": _entry(extra=1)}, b"1234", "malformed entry"),
        ({"a": 3}, b"1234", "malformed entry"),
        ({"a": _entry(), "b": _entry()}, b"1234", "overlap"),
        ({"a": _entry(data_offsets=[1, 5])}, b"12345", "overlap or leave a gap"),
        ({"a": _entry()}, b"12345", "longer than its tensors"),
        ({"__metadata__": {"a": 1}}, b"", "malformed metadata"),
        ({"__metadata__": []}, b"", "malformed metadata"),
        (b'{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},"a":{}}', b"1234", "not valid"),
        ([], b"", "no table"),
        (b"\xff\xff", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
    ],
)
def test_malformed_headers_are_refused(
    tmp_path: Path, header: object, data: bytes, reason: str
) -> None:
    with pytest.raises(InvalidModelError, match=reason):
        open_tensor_file(_write_raw(tmp_path / "file", header, data))


@pytest.mark.parametrize("length", [3, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_an_absurd_header_length_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "file").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(InvalidModelError, match="claims a header"):
        open_tensor_file(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"1234567")
    with pytest.raises(InvalidModelError, match="too short"):
        open_tensor_file(tmp_path / "file")


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 700), change=st.binary(min_size=1, max_size=4))
def test_a_mutated_file_is_read_or_refused(
    place: int, change: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated"
    write_tensor_file(path, ARRAYS, {"key": "value"})
    content = bytearray(path.read_bytes())
    content[place : place + len(change)] = change
    path.write_bytes(content)
    try:
        views = open_tensor_file(path).map()
    except InvalidModelError:
        return
    assert sum(view.nbytes for view in views.values()) <= len(content)

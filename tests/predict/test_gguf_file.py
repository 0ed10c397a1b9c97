"""Block formats are dequantized exactly as they are defined."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

from archiver.errors import InvalidModelError
from archiver.predict.gguf_file import BLOCK_FORMATS, GgufFile, open_gguf
from archiver.predict.sources import read_source
from tests.support.tiny_gguf import make_tiny_gguf

ROWS = 6


def _half(pair: bytes) -> Fraction:
    return Fraction(float(np.frombuffer(pair, dtype="<f2")[0]))


def _binary32(value: Fraction) -> Fraction:
    """Round to binary32; every value here is held by binary64 exactly, so this rounds once."""
    assert Fraction(float(value)) == value
    return Fraction(float(np.float32(float(value))))


def _nibbles(packed: bytes) -> list[int]:
    """The low nibbles of all bytes come first, then the high ones."""
    return [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]


def _q4_0(block: bytes) -> list[Fraction]:
    return [_half(block[:2]) * (code - 8) for code in _nibbles(block[2:])]


def _q4_1(block: bytes) -> list[Fraction]:
    scale, minimum = _half(block[:2]), _half(block[2:4])
    return [_binary32(_binary32(scale * code) + minimum) for code in _nibbles(block[4:])]


def _q5(block: bytes, offset: int) -> list[int]:
    high = int.from_bytes(block[offset : offset + 4], "little")
    low = _nibbles(block[offset + 4 :])
    return [code | ((high >> index) & 1) << 4 for index, code in enumerate(low)]


def _q5_0(block: bytes) -> list[Fraction]:
    return [_half(block[:2]) * (code - 16) for code in _q5(block, 2)]


def _q5_1(block: bytes) -> list[Fraction]:
    scale, minimum = _half(block[:2]), _half(block[2:4])
    return [_binary32(_binary32(scale * code) + minimum) for code in _q5(block, 4)]


def _q8_0(block: bytes) -> list[Fraction]:
    return [_half(block[:2]) * code for code in np.frombuffer(block[2:], np.int8).tolist()]


def _q4_k(block: bytes) -> list[Fraction]:
    """Eight runs of 32 codes, each with a scale and a minimum of 6 bits."""
    scale, minimum, packed = _half(block[:2]), _half(block[2:4]), block[4:16]
    scales = [packed[i] & 63 for i in range(4)]
    scales += [(packed[8 + i] & 15) | (packed[i] >> 6) << 4 for i in range(4)]
    minima = [packed[4 + i] & 63 for i in range(4)]
    minima += [packed[8 + i] >> 4 | (packed[4 + i] >> 6) << 4 for i in range(4)]
    values = []
    for run in range(8):
        codes = block[16 + run // 2 * 32 : 48 + run // 2 * 32]
        for byte in codes:
            code = byte >> 4 if run % 2 else byte & 15
            product = _binary32(_binary32(scale * scales[run]) * code)
            values.append(_binary32(product - _binary32(minimum * minima[run])))
    return values


def _q6_k(block: bytes) -> list[Fraction]:
    """Sixteen runs of 16 codes of 6 bits, each with a scale of 8 bits."""
    low, high, scales = block[:128], block[128:192], np.frombuffer(block[192:208], np.int8)
    scale = _half(block[208:])
    values = []
    for index in range(256):
        half, place = divmod(index, 128)
        quarter, column = divmod(place, 32)
        byte = low[half * 64 + (quarter % 2) * 32 + column]
        nibble = byte >> 4 if quarter >= 2 else byte & 15
        bits = high[half * 32 + column] >> (2 * quarter) & 3
        run_scale = _binary32(scale * int(scales[index // 16]))
        values.append(_binary32(run_scale * ((nibble | bits << 4) - 32)))
    return values


DEFINITIONS = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q4_K": _q4_k, "Q6_K": _q6_k,
}  # fmt: skip


def _random_blocks(block_format: str, count: int) -> np.ndarray:
    """Return uint8[count, block bytes] of random bits whose scales are finite numbers."""
    weights, length = GGML_QUANT_SIZES[GGMLQuantizationType[block_format]]
    blocks = np.random.default_rng(7).integers(0, 256, (count, length), dtype=np.uint8)
    scales = {"Q6_K": (208,), "Q4_K": (0, 2)}.get(
        block_format, (0, 2) if block_format.endswith("1") else (0,)
    )
    for at in scales:  # clear the exponent's highest bit: neither infinity nor NaN
        blocks[:, at + 1] &= 0xBF
    assert weights * count % ROWS == 0
    return blocks


def _open_single(path: Path, data: np.ndarray, kind: GGMLQuantizationType) -> GgufFile:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("weights", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_gguf(path)


@pytest.mark.parametrize("block_format", sorted(DEFINITIONS))
def test_weights_equal_the_definition(tmp_path: Path, block_format: str) -> None:
    blocks = _random_blocks(block_format, 4 * ROWS)
    kind = GGMLQuantizationType[block_format]
    file = _open_single(tmp_path / "one.gguf", blocks.reshape(ROWS, -1), kind)
    weights = file.weights("weights")
    expected = [value for block in blocks for value in DEFINITIONS[block_format](block.tobytes())]
    assert weights.shape == (ROWS, len(expected) // ROWS)
    assert [Fraction(value) for value in weights.reshape(-1).tolist()] == expected


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_numbers_are_widened(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(3).standard_normal((4, 8)).astype(np.float32)
    bits = values.view(np.uint32) & np.uint32(0xFFFF0000)
    stored, expected = {
        "F32": (values, values),
        "F16": (values.astype(np.float16), values.astype(np.float16).astype(np.float32)),
        "BF16": ((bits >> np.uint32(16)).astype("<u2").view(np.uint8), bits.view(np.float32)),
    }[kind]
    file = _open_single(tmp_path / "one.gguf", stored, GGMLQuantizationType[kind])
    assert np.array_equal(file.weights("weights"), expected)


def test_the_block_sizes_are_those_of_the_library() -> None:
    for number, (name, weights, length) in BLOCK_FORMATS.items():
        kind = GGMLQuantizationType[name]
        assert kind.value == number
        assert GGML_QUANT_SIZES[kind] == (weights, length)


def test_other_block_formats_are_refused(tmp_path: Path) -> None:
    data = np.zeros((2, 66), dtype=np.uint8)
    with pytest.raises(InvalidModelError, match="block format 16"):
        _open_single(tmp_path / "one.gguf", data, GGMLQuantizationType.IQ2_XXS)


def test_query_rows_are_put_in_order_when_quantized(tmp_path: Path) -> None:
    """Rows keep their blocks, so putting them in order commutes with dequantization."""
    sizes = {"hidden": 64, "ffn": 128, "heads": 4, "kv_heads": 2, "head_dim": 16}
    formats = {"attn_q": "Q4_1", "attn_k": "Q8_0", "token_embd": "Q8_0", "ffn_down": "Q4_1"}
    exact = read_source(make_tiny_gguf(tmp_path / "exact.gguf", seed=9, **sizes))
    small = read_source(
        make_tiny_gguf(tmp_path / "small.gguf", seed=9, block_formats=formats, **sizes)
    )
    for name, worst in {"layers.0.q": 0.02, "layers.1.k": 0.002, "embed": 0.002}.items():
        difference = np.abs(exact.tensors[name] - small.tensors[name]).max()
        assert 0 < difference < worst, name


def test_scales_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    sizes = {"hidden": 64, "ffn": 128, "heads": 4, "kv_heads": 2, "head_dim": 16}
    path = make_tiny_gguf(
        tmp_path / "tiny.gguf", seed=9, block_formats={"ffn_down": "Q4_1"}, **sizes
    )
    entry = open_gguf(path).tensors["blk.0.ffn_down.weight"]
    content = bytearray(path.read_bytes())
    content[entry.offset : entry.offset + 2] = b"\x00\x7c"  # infinity in binary16
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"layers\.0\.down holds NaN or infinity"):
        read_source(path).tensors["layers.0.down"]

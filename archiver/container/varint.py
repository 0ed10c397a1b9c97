"""Variable-length unsigned integers (LEB128), in their shortest form only.

Source: FORMAT.md, "Conventions".
"""

from __future__ import annotations

U32_VARINT_BYTES = 5
U64_VARINT_BYTES = 10


class MalformedError(ValueError):
    """Bytes do not have the form that the format prescribes.

    Raised by decoders that do not know which part of the archive they read; their callers
    turn it into the error of that part.
    """


class VarintError(MalformedError):
    """A variable-length integer is cut off, too large, or not in its shortest form."""


def encode_varint(value: int) -> bytes:
    """Return `value` (0 <= value < 2^64) as an unsigned LEB128, shortest form."""
    assert 0 <= value < 1 << 64
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode_varint(data: bytes, offset: int, *, bits: int = 32) -> tuple[int, int]:
    """Return the integer that starts at `offset`, and the offset after it.

    Args:
        data: the bytes of the part that is being read.
        offset: where the integer starts.
        bits: 32 or 64; a larger value than that many bits hold is refused.

    Raises:
        VarintError: it runs over the end of `data`, is too large, or is not in its
            shortest form.
    """
    limit_bytes = U32_VARINT_BYTES if bits == 32 else U64_VARINT_BYTES
    value = 0
    for position in range(limit_bytes):
        if offset + position >= len(data):
            raise VarintError("a variable-length integer is cut off")
        byte = data[offset + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            if byte == 0 and position > 0:
                raise VarintError("a variable-length integer is not in its shortest form")
            if value >> bits:
                break
            return value, offset + position + 1
    raise VarintError(f"a variable-length integer does not fit {bits} bits")

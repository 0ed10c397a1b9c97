"""The mixer's parameters in the header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.mixing.parameters import MixerParameters

parameters = st.builds(
    MixerParameters,
    tokens_mixed=st.booleans(),
    nearest=st.booleans(),
    slot_bits_max=st.integers(16, 25),
    contexts=st.integers(0, (1 << 18) - 1),
    matches=st.integers(0, 3),
    maps=st.integers(0, (1 << 10) - 1),
    sets=st.integers(1, 63),
)


@given(parameters)
def test_decoding_gives_what_was_encoded(given_parameters: MixerParameters) -> None:
    encoded = given_parameters.encode()
    assert len(encoded) == 9
    assert MixerParameters.decode(encoded) == given_parameters


def test_the_default_uses_everything() -> None:
    assert MixerParameters().encode().hex() == "0319ffff0303ff033f"


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("", "malformed"),
        ("0119ffff0303ff033f00", "malformed"),
        ("0419ffff0303ff033f", "malformed"),
        ("010fffff0303ff033f", "slot_bits_max 15"),
        ("011affff0303ff033f", "slot_bits_max 26"),
        ("0119ffff0703ff033f", "contexts 524287"),
        ("0119ffff0304ff033f", "matches 4"),
        ("0119ffff0303ff073f", "maps 2047"),
        ("0119ffff0303ff0340", "sets 64"),
        ("0119ffff0303ff0300", "sets 0"),
    ],
)
def test_other_bytes_are_refused(encoded: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixerParameters.decode(bytes.fromhex(encoded))

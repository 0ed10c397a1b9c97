"""Archives of the default model decode and are made again, byte for byte (needs the model).

    python -m tests.golden.test_default_model

makes those that are not there. As for all goldens, one that has been released is never made anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import archiver
from archiver.options import CompressOptions

FOLDER = Path(__file__).parent / "default_model"
TEXT = Path(__file__).parents[1] / "data" / "alice.txt"
CONTENT_BYTES = 1500

GOLDENS = {
    "one_stream": CompressOptions(steering="none"),
    "streams": CompressOptions(level=1, chunk_tokens=40, steering="none"),
    "prose": CompressOptions(level=1, chunk_tokens=40, steering="prose"),
}

pytestmark = pytest.mark.slow


def _content() -> bytes:
    return TEXT.read_bytes()[:CONTENT_BYTES]


@pytest.mark.parametrize("name", GOLDENS)
def test_the_default_model_decodes_its_golden(name: str) -> None:
    assert archiver.decompress((FOLDER / f"{name}.llmz").read_bytes()) == _content()


@pytest.mark.parametrize("name", GOLDENS)
def test_the_default_model_makes_its_golden_again(name: str) -> None:
    expected = (FOLDER / f"{name}.llmz").read_bytes()
    assert archiver.compress(_content(), options=GOLDENS[name]) == expected


if __name__ == "__main__":
    for name, options in GOLDENS.items():
        path = FOLDER / f"{name}.llmz"
        if not path.exists():
            path.write_bytes(archiver.compress(_content(), options=options))

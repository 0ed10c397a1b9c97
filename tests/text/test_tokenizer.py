"""The tokenizer: as the model was trained, special names as text, one thread."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from archiver.errors import InvalidModelError
from archiver.text.byte_level import token_bytes_of, tokenizer_json_from_gguf
from archiver.text.tokenizer import TextTokenizer
from tests.support.tiny_models import tiny_tokenizer, tiny_vocabulary


@dataclass
class Owner:
    """Stands for a package."""

    text: str

    def read_tokenizer(self) -> str:
        return self.text


TEXT = json.dumps(tiny_tokenizer(400))
TOKENIZER = TextTokenizer(Owner(TEXT))
TOKEN_BYTES = token_bytes_of(TEXT, 400)


def _pieces(text: str, tokenizer: TextTokenizer = TOKENIZER) -> list[bytes | None]:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    return [TOKEN_BYTES[index] for index in ids]


def test_digits_are_isolated_before_anything_else() -> None:
    assert _pieces("in 1905\n12") == [
        b"in", b" ", b"1", b"9", b"0", b"5", b"\n", b"1", b"2",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
def test_names_of_special_tokens_are_text(name: str) -> None:
    pieces = _pieces(f"a{name}b")
    assert None not in pieces
    assert b"".join(piece for piece in pieces if piece) == f"a{name}b".encode()


def test_bytes_without_a_token_vanish() -> None:
    """What framing has to find: the library drops them without a word."""
    assert _pieces("a\x04b") == [b"a", b"b"]
    assert b"\xf1" not in b"".join(piece for piece in _pieces("\U00040000") if piece)
    assert _pieces("") == []


def test_a_tokenizer_from_gguf_lists_gives_the_same_ids() -> None:
    tokens, merges = tiny_vocabulary(400)
    types = [3, 3, 3] + [1] * (len(tokens) - 3)
    made = TextTokenizer(Owner(tokenizer_json_from_gguf(tokens, types, merges, "smollm")))
    for text in ("The quick brown fox, 1905.\r\n\t  x", "über <|im_start|> Москва", "a" * 999):
        assert np.array_equal(made.encode(text), TOKENIZER.encode(text))


@pytest.mark.parametrize(
    ("pre_tokenizer", "pieces"),
    [
        ("smollm", ["x", "1", "2", "3", "4", " ", "5"]),
        ("gpt-2", ["x", "1", "2", "3", "4", " ", "5"]),
        ("llama-bpe", ["x", "1", "2", "3", "4", " ", "5"]),
    ],
)
def test_every_known_pre_tokenizer_is_one_the_library_reads(
    pre_tokenizer: str, pieces: list[str]
) -> None:
    tokens, merges = tiny_vocabulary(300)
    text = tokenizer_json_from_gguf(tokens, [3] * 3 + [1] * 297, merges, pre_tokenizer)
    tokenizer = TextTokenizer(Owner(text))
    found = token_bytes_of(text, 300)
    assert [found[index] for index in tokenizer.encode("x1234 5")] == [
        piece.encode() for piece in pieces
    ]


def test_a_malformed_tokenizer_is_refused() -> None:
    for text in ("", "{}", TEXT.replace('"Digits"', '"Nothing"')):
        with pytest.raises(InvalidModelError, match="cannot be used"):
            TextTokenizer(Owner(text))

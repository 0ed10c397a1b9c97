"""The byte table and the tokenizer as JSON."""

from __future__ import annotations

import json

import pytest
from tokenizers import pre_tokenizers

from archiver.errors import InvalidModelError
from archiver.text.byte_level import (
    BYTE_OF_CHARACTER,
    CHARACTER_OF_BYTE,
    bytes_of_token,
    plain_tokenizer_json,
    token_bytes_of,
    tokenizer_json_from_gguf,
)
from tests.support.tiny_models import tiny_tokenizer


def test_the_byte_table_is_a_bijection_onto_the_librarys_alphabet() -> None:
    assert sorted(CHARACTER_OF_BYTE) == list(range(256))
    assert len(BYTE_OF_CHARACTER) == 256
    assert set(BYTE_OF_CHARACTER) == set(pre_tokenizers.ByteLevel.alphabet())
    assert CHARACTER_OF_BYTE[0x20] == "Ġ"
    assert CHARACTER_OF_BYTE[0x0A] == "Ċ"
    assert CHARACTER_OF_BYTE[ord("a")] == "a"
    for byte in range(256):
        assert bytes_of_token(CHARACTER_OF_BYTE[byte]) == bytes([byte])
    assert bytes_of_token("日") is None
    assert bytes_of_token("") is None


def test_a_published_tokenizer_is_stripped_of_what_adds_or_loses_text() -> None:
    data = tiny_tokenizer(300)
    model = dict(data["model"], dropout=0.5, unk_token="<|endoftext|>")  # type: ignore[call-overload]
    noisy = data | {
        "model": model,
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": "BatchLongest"},
        "post_processor": {"type": "TemplateProcessing"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
    }
    plain = json.loads(plain_tokenizer_json(json.dumps(noisy)))
    assert plain["truncation"] is plain["padding"] is plain["post_processor"] is None
    assert plain["model"]["dropout"] is plain["model"]["unk_token"] is None
    assert plain["pre_tokenizer"]["add_prefix_space"] is False
    assert json.loads(plain_tokenizer_json(json.dumps(data))) == data


def test_added_tokens_that_are_not_special_stand_for_their_text() -> None:
    data = tiny_tokenizer(300)
    data["added_tokens"] = [
        *data["added_tokens"],  # type: ignore[misc]
        {"id": 300, "content": "    é", "special": False},
        {"id": 301, "content": "<pad>", "special": True},
    ]
    found = token_bytes_of(plain_tokenizer_json(json.dumps(data)), 303)
    assert found[300] == "    é".encode()
    assert found[301] is None
    assert found[302] is None


@pytest.mark.parametrize(
    ("tokens", "types", "merges", "reason"),
    [
        (["a", "a"], [1, 1], [], "occurs twice"),
        (["a", "b"], [1], [], "differ in number"),
        (["a", "b"], [1, 1], ["a b"], "not of two tokens into a third"),
        (["a", "b", "ab"], [1, 1, 1], ["ab"], "not of two tokens into a third"),
        (["a", "b", "ab"], [1, 1, 1], ["a b c"], "not of two tokens into a third"),
    ],
)
def test_lists_that_do_not_fit_together_are_refused(
    tokens: list[str], types: list[int], merges: list[str], reason: str
) -> None:
    with pytest.raises(InvalidModelError, match=reason):
        tokenizer_json_from_gguf(tokens, types, merges, "gpt-2")


def test_tokens_of_absurd_length_are_refused() -> None:
    text = tokenizer_json_from_gguf(["a" * 5000], [1], [], "gpt-2")
    with pytest.raises(InvalidModelError, match="5000 bytes long"):
        token_bytes_of(text, 1)

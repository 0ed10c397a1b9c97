"""Gemma 3 in GGUF files: the model of the same Hugging Face folder, with a tokenizer of pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import archiver
from archiver.errors import InvalidModelError
from archiver.options import CompressOptions
from archiver.predict import registry
from archiver.predict.engine import Engine
from archiver.predict.sources import read_source
from archiver.predict.tables import LOG2_E
from tests.support.tiny_gemma import make_gemma_folder, make_gemma_gguf
from tests.support.tiny_pieces import tiny_pieces

from .engines import run

TEXT = "The quick  brown fox\n\njumps over <b> the lazy dog ▁ und die Bäume. <bos>\r\n".encode() * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gemma_folder(tmp_path_factory.mktemp("source") / "gemma", seed=3)


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    return make_gemma_gguf(tmp_path / "tiny.gguf", folder)


def test_gguf_and_folder_of_the_same_model_are_equal(file: Path, folder: Path) -> None:
    """Shape, layers that slide, weights, and gains, which the folder holds less 1."""
    from_file, from_folder = read_source(file), read_source(folder)
    assert from_file.config == from_folder.config
    assert from_file.config.sliding is not None
    for name in from_folder.tensors:
        assert np.array_equal(from_file.tensors[name], from_folder.tensors[name]), name
    assert (from_file.name, from_file.licence) == ("Tiny Gemma", "gemma")
    assert from_file.start_token_id == 2


def test_tokens_are_those_of_the_pieces(file: Path) -> None:
    source = read_source(file)
    tokens, _, _ = tiny_pieces(source.config.vocab)
    found = dict(zip(tokens, source.token_bytes, strict=True))
    assert found["<bos>"] is None
    assert found["\n\n"] == b"\n\n"
    assert found["▁the"] == b" the"
    assert found["<0xF5>"] == b"\xf5"


def test_by_default_every_sixth_layer_sees_everything(tmp_path: Path) -> None:
    def change(fields: dict[str, object]) -> None:
        del fields["gemma3.attention.sliding_window_pattern"]

    folder = make_gemma_folder(tmp_path / "gemma", seed=3, layers=7)
    file = make_gemma_gguf(tmp_path / "tiny.gguf", folder, change=change)
    sliding = read_source(file).config.sliding
    assert sliding is not None
    assert sliding.layers == (1, 1, 1, 1, 1, 0, 1)
    assert sliding.rope_theta == 10000.0


def test_the_base_of_sliding_layers_may_be_stated(folder: Path, tmp_path: Path) -> None:
    def change(fields: dict[str, object]) -> None:
        fields["gemma3.rope.freq_base_swa"] = 20000.0

    file = make_gemma_gguf(tmp_path / "tiny.gguf", folder, change=change)
    sliding = read_source(file).config.sliding
    assert sliding is not None
    assert sliding.rope_theta == 20000.0


def test_logits_are_those_of_transformers_but_for_rounding(
    file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In standard deviations of the logits, as for other families; past the sliding window."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    package = registry.add(file, name="gemma")
    rank_of_id = np.array(package.arrays["tokens.rank_of_id"])
    coded = np.flatnonzero(rank_of_id >= 0)
    id_of_rank = np.full(len(coded) + 1, 2)  # after the last rank the token that starts
    id_of_rank[rank_of_id[coded]] = coded
    ranks = np.random.default_rng(9).integers(0, len(coded), (2, 40)).astype(np.int32)
    ranks[:, 0] = len(coded)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(id_of_rank[ranks])).logits.numpy()
    expected = expected[:, :, id_of_rank[:-1]]
    engine = Engine(package, window=512, local_window=512, sinks=4)
    codes, scales = run(engine, ranks, ranks.shape[1])
    product, rows, outputs = engine.head(codes.reshape(-1, codes.shape[2]), scales.reshape(-1))
    logits = (product * (rows[:, None] * outputs) / LOG2_E).reshape(expected.shape)
    error = np.sqrt(((logits - expected) ** 2).mean()) / expected.std()
    assert error < 0.06


def test_archives_hold_what_was_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with blocks of 32 weights, too; text that its tokenizer loses included."""
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    folder = make_gemma_folder(tmp_path / "wide", seed=4, hidden=64, head_dim=32)
    formats = {"token_embd": "Q8_0", "attn_q": "Q5_0", "ffn_down": "Q4_0"}
    file = make_gemma_gguf(tmp_path / "tiny.gguf", folder, block_formats=formats)
    registry.add(file, name="gemma")
    options = CompressOptions(model="gemma", window_tokens=16, chunk_tokens=60, threads=1)
    archive = archiver.compress(TEXT, options=options)
    assert archiver.decompress(archive) == TEXT


def _without(key: str) -> Callable[[dict[str, object]], None]:
    def change(fields: dict[str, object]) -> None:
        del fields[key]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without("tokenizer.ggml.scores"), "tokenizer.ggml.scores is missing"),
        (_without("tokenizer.ggml.token_type"), "tokenizer.ggml.token_type is missing"),
        ({"tokenizer.ggml.scores": [0.0]}, "differ in number"),
        ({"tokenizer.ggml.scores": [1]}, "does not hold float only"),
        ({"tokenizer.ggml.pre": "mystery"}, "pre-tokenizer 'mystery'"),
        ({"tokenizer.ggml.model": "t5"}, r"nor SentencePiece BPE \(it is 't5'\)"),
        ({"tokenizer.ggml.token_type": [1] * 440}, "not lossless: no token for the byte 0x00"),
        (_without("gemma3.attention.sliding_window"), "sliding_window is missing"),
        ({"gemma3.attention.sliding_window": 0}, "a sliding window of 0 tokens"),
        ({"gemma3.attention.sliding_window_pattern": 0}, "a pattern of 0 sliding layers"),
        ({"gemma3.attention.sliding_window_pattern": [True, False]}, "is not of type int"),
        ({"gemma3.rope.freq_base_swa": -1.0}, "rope_theta is -1.0"),
        ({"gemma3.rope.scaling.type": "linear"}, r"scaled rotary positions \(linear\)"),
        ({"gemma3.final_logit_softcapping": 30.0}, "final_logit_softcapping is not supported"),
        ({"gemma3.attn_logit_softcapping": 50.0}, "attn_logit_softcapping is not supported"),
        ({"gemma3.block_count": 62}, "Gemma 3 27B scales attention scores its own way"),
        ({"gemma3.block_count": 4_000_000_000}, "layers is 4000000000"),
        ({"gemma3.block_count": 3}, "tensor layers.2.norm1 is missing"),
        ({"gemma3.attention.value_length": 8}, "two widths"),
        ({"general.architecture": "gemma2"}, r"'gemma2' is not supported in GGUF \(llama, gemma3"),
        ({"general.architecture": "llama"}, r"llama\.embedding_length is missing"),
    ],
)
def test_what_is_no_plain_gemma_is_refused(
    change: Callable[[dict[str, object]], None] | dict[str, object],
    reason: str,
    folder: Path,
    tmp_path: Path,
) -> None:
    def changed(fields: dict[str, object]) -> None:
        if isinstance(change, dict):
            fields.update(change)
        else:
            change(fields)

    file = make_gemma_gguf(tmp_path / "tiny.gguf", folder, change=changed)
    with pytest.raises(InvalidModelError, match=reason):
        read_source(file)

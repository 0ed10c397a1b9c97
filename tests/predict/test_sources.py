"""Models as published: GGUF files and Hugging Face folders give the same SourceModel."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from archiver.errors import InvalidModelError
from archiver.predict.sources import SourceModel, expected_shapes, read_source, start_token_of
from tests.support.tiny_gguf import make_tiny_gguf
from tests.support.tiny_models import MISSING_BYTES, make_tiny_hf_folder, tiny_weights
from tests.support.tiny_pieces import tiny_pieces


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_hf_folder(tmp_path / "tiny", seed=1)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", seed=1).read_bytes()


def _edit_json(path: Path, **changes: object) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    data.update(changes)
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}), encoding="utf-8")


def _edit_weights(folder: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def test_a_folder_gives_its_weights_under_canonical_names(folder: Path) -> None:
    source = read_source(folder)
    weights = tiny_weights(seed=1)
    assert source.config.tied
    assert set(source.tensors) == set(expected_shapes(source.config))
    assert np.array_equal(source.tensors["embed"], weights["model.embed_tokens.weight"])
    q = source.tensors["layers.1.q"]
    assert np.array_equal(q, weights["model.layers.1.self_attn.q_proj.weight"])
    assert q.dtype == np.float32
    assert q.flags.writeable
    assert q.flags.c_contiguous
    assert source.name == "tiny"


def test_an_untied_head_is_there_and_a_tied_one_is_not(tmp_path: Path) -> None:
    untied = read_source(make_tiny_hf_folder(tmp_path / "untied", seed=2, tied=False))
    assert untied.tensors["head"].shape == (400, 48)
    tied = make_tiny_hf_folder(tmp_path / "tied", seed=2, tied=False)
    _edit_json(tied / "config.json", tie_word_embeddings=True)
    assert "head" not in read_source(tied).tensors


def test_every_byte_but_the_missing_ones_has_a_token(folder: Path) -> None:
    source = read_source(folder)
    assert source.token_bytes[:3] == [None, None, None]
    single = {token for token in source.token_bytes if token is not None and len(token) == 1}
    assert single == {bytes([byte]) for byte in range(256) if byte not in MISSING_BYTES}
    assert source.start_token_id == 0


def _same_model(first: SourceModel, second: SourceModel) -> None:
    assert first.config == second.config
    assert first.token_bytes == second.token_bytes
    assert first.start_token_id == second.start_token_id
    for name in first.tensors:
        assert np.array_equal(first.tensors[name], second.tensors[name]), name


@pytest.mark.parametrize("heads", [{"heads": 3, "kv_heads": 1}, {"heads": 4, "kv_heads": 2}])
@pytest.mark.parametrize("tied", [True, False])
def test_gguf_and_folder_of_the_same_model_are_equal(
    tmp_path: Path, heads: dict[str, int], tied: bool
) -> None:
    """The rows of queries and keys included: their order in GGUF is undone."""
    file = make_tiny_gguf(tmp_path / "tiny.gguf", seed=5, tied=tied, **heads)
    folder = make_tiny_hf_folder(tmp_path / "tiny", seed=5, tied=tied, **heads)
    from_file, from_folder = read_source(file), read_source(folder)
    _same_model(from_file, from_folder)
    assert json.loads(from_file.tokenizer_json) == json.loads(from_folder.tokenizer_json)
    assert (from_file.name, from_file.licence) == ("Tiny Test", "apache-2.0")


def test_bfloat16_and_float16_are_widened_exactly(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    save_file(half, folder / "model.safetensors")
    assert np.array_equal(
        read_source(folder).tensors["norm"], half["model.norm.weight"].astype(np.float32)
    )
    # bfloat16: numpy has no such type, so the header is edited over 16-bit integers.
    bits = {
        name: (array.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        for name, array in weights.items()
    }
    save_file(bits, folder / "model.safetensors")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].replace(b'"U16"', b'"BF16"')
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    expected = (bits["model.norm.weight"].astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert np.array_equal(read_source(folder).tensors["norm"], expected)


def test_a_folder_with_several_weight_files_is_read_by_its_index(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: weights[name] for name in members}, folder / file)
    table = {name: file for file, members in parts.items() for name in members}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    (folder / "model.safetensors").unlink()
    assert np.array_equal(
        read_source(folder).tensors["embed"], weights["model.embed_tokens.weight"]
    )
    index.write_text(json.dumps({"weight_map": dict.fromkeys(table, "../a.safetensors")}))
    with pytest.raises(InvalidModelError, match=r"names the file '\.\./a"):
        read_source(folder)
    index.unlink()
    with pytest.raises(InvalidModelError, match="several safetensors files"):
        read_source(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "rwkv"}, "architecture 'rwkv' is not supported"),
        ({"model_type": ...}, "architecture None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "scaled rotary positions"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "scaled rotary positions"),
        ({"attention_bias": True}, "attention_bias is not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"hidden_size": ...}, "hidden_size is None"),
        ({"hidden_size": 64}, "tensor embed has shape"),
        ({"num_hidden_layers": 3}, "tensor layers.2.norm1 is missing"),
        ({"num_hidden_layers": 1}, "tensor layers.1"),
        ({"num_hidden_layers": 10**9}, "layers is 1000000000"),
        ({"num_attention_heads": 0}, "no attention heads"),
        ({"num_key_value_heads": 2}, "evenly"),
        ({"head_dim": 15}, "even number"),
        ({"rms_norm_eps": -1.0}, "norm_eps is -1.0"),
        ({"rms_norm_eps": 1e-60}, "out of range"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": 10**400}, "out of range"),
        ({"tie_word_embeddings": False}, "tensor head is missing"),
        ({"vocab_size": 399}, "tensor embed has shape"),
    ],
)
def test_a_folder_that_is_no_plain_llama_is_refused(
    folder: Path, changes: dict[str, object], reason: str
) -> None:
    _edit_json(folder / "config.json", **changes)
    with pytest.raises(InvalidModelError, match=reason) as caught:
        read_source(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_when_read(folder: Path, value: float) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.0.mlp.up_proj.weight"][3, 4] = value

    _edit_weights(folder, spoil)
    source = read_source(folder)
    assert source.tensors["layers.0.gate"].size
    with pytest.raises(InvalidModelError, match=r"layers\.0\.up holds NaN or infinity"):
        source.tensors["layers.0.up"]


def test_missing_extra_and_integer_tensors_are_refused(folder: Path) -> None:
    _edit_weights(folder, lambda weights: weights.update(
        {"model.layers.0.self_attn.q_proj.bias": np.zeros(48, np.float32)}))  # fmt: skip
    with pytest.raises(InvalidModelError, match=r"q_proj\.bias is not one that a llama"):
        read_source(folder)
    _edit_weights(folder, lambda weights: weights.pop("model.layers.0.self_attn.q_proj.bias"))
    _edit_weights(folder, lambda weights: weights.update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)}))  # fmt: skip
    assert read_source(folder)
    _edit_weights(folder, lambda weights: weights.update(
        {"model.norm.weight": np.ones(48, np.int8)}))  # fmt: skip
    with pytest.raises(InvalidModelError, match="not of floating-point numbers"):
        read_source(folder).tensors["norm"]
    _edit_weights(folder, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(InvalidModelError, match="tensor norm is missing"):
        read_source(folder)


def test_pickles_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidModelError, match="pickles"):
        read_source(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InvalidModelError, match="no safetensors file"):
        read_source(folder)


@pytest.mark.parametrize(
    ("model", "rule", "reason"),
    [
        ({"type": "Unigram"}, None, "not byte-level BPE"),
        ({"type": "WordPiece"}, None, "not byte-level BPE"),
        ({"byte_fallback": True}, None, "with byte fallback"),
        ({}, {"type": "Metaspace"}, "not byte-level BPE"),
        ({"end_of_word_suffix": "</w>"}, None, "not byte-level"),
        ({"vocab": []}, None, "lacks a vocabulary"),
        ({"vocab": {"a": "b"}}, None, "without an id"),
        ({"vocab": {"a": 5000}}, None, "beyond the model's 400 rows"),
    ],
)
def test_a_tokenizer_that_is_not_byte_level_bpe_is_refused(
    folder: Path, model: dict[str, object], rule: object, reason: str
) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"].update(model)
    if rule is not None:
        data["pre_tokenizer"] = rule
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidModelError, match=reason):
        read_source(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_malformed_json_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(InvalidModelError):
        read_source(folder)
    (folder / name).unlink()
    with pytest.raises(InvalidModelError, match=f"{name} is missing"):
        read_source(folder)


def test_the_licence_is_read_from_the_model_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\ntext")
    assert read_source(folder).licence == "apache-2.0"
    (folder / "README.md").write_text("license: mit\n")
    assert read_source(folder).licence == ""


def test_nothing_there_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no such file or folder"):
        read_source(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InvalidModelError, match="not a GGUF file"):
        read_source(tmp_path / "text")


def test_the_separator_of_documents_starts_a_text() -> None:
    assert start_token_of({"<|endoftext|>": 7}, 1, 2) == 7
    assert start_token_of({"<s>": 1}, 1, 2) == 1
    assert start_token_of({}, None, 2) == 2
    with pytest.raises(InvalidModelError, match="no token for the start"):
        start_token_of({}, None, None)


# GGUF only


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.add_uint32("split.count", 2), "split over several"),
        (lambda w: w.add_uint32("llama.expert_count", 8), "mixtures of experts"),
        (lambda w: w.add_string("llama.rope.scaling.type", "yarn"), "scaled rotary"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32)), "rope_freqs"),
        (lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(48, np.float32)), "attn_q.bias"),
        (lambda w: w.add_tensor("blk.00.attn_q.weight", np.ones(48, np.float32)), "blk.00"),
        (lambda w: w.kv_data[0].pop("llama.block_count"), "block_count is missing"),
        (lambda w: w.add_tokenizer_model("bert"), "not byte-level BPE, nor SentencePiece BPE"),
        (lambda w: w.add_tokenizer_pre("mystery"), "pre-tokenizer 'mystery'"),
        (lambda w: w.add_token_merges(["a"]), "a merge is not"),
        (lambda w: w.add_token_types([1]), "differ in number"),
        (lambda w: w.add_value_length(8), "two widths"),
    ],
)
def test_a_gguf_that_is_no_plain_llama_is_refused(
    tmp_path: Path, change: Callable[[object], None], reason: str
) -> None:
    def forced(writer: object) -> None:
        try:
            change(writer)
        except ValueError:  # the writer refuses to set a key twice
            fields = writer.kv_data[0]  # type: ignore[attr-defined]
            before = dict(fields)
            fields.clear()
            change(writer)
            fields |= {key: value for key, value in before.items() if key not in fields}

    file = make_tiny_gguf(tmp_path / "tiny.gguf", seed=1, change=forced)
    with pytest.raises(InvalidModelError, match=reason):
        read_source(file)


def test_a_llama_may_have_a_tokenizer_of_pieces(tmp_path: Path) -> None:
    tokens, types, scores = tiny_pieces(440)

    def change(writer: GGUFWriter) -> None:
        for key in [key for key in writer.kv_data[0] if key.startswith("tokenizer.")]:
            del writer.kv_data[0][key]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_scores(scores)
        writer.add_bos_token_id(2)

    source = read_source(make_tiny_gguf(tmp_path / "tiny.gguf", seed=1, vocab=440, change=change))
    assert source.token_bytes[tokens.index("▁the")] == b" the"
    assert source.token_bytes[source.start_token_id] is None
    assert source.start_token_id == 2


def _read_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    source = read_source(path)
    for name in source.tensors:
        assert np.isfinite(source.tensors[name]).all()


def test_a_gguf_cut_anywhere_is_refused(tmp_path: Path, gguf_bytes: bytes) -> None:
    rng = np.random.default_rng(0)
    cuts = {0, 3, 4, 8, 23, 24, len(gguf_bytes) - 40, *rng.integers(0, len(gguf_bytes), 60)}
    for cut in cuts:
        with pytest.raises(InvalidModelError):
            _read_bytes(tmp_path / "cut.gguf", gguf_bytes[: int(cut)])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_gguf_is_read_or_refused(
    data: st.DataObject, gguf_bytes: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    head = gguf_bytes.index(b"blk.1.ffn_norm.weight")
    place = data.draw(st.integers(0, head))
    change = data.draw(st.binary(min_size=1, max_size=8))
    content = gguf_bytes[:place] + change + gguf_bytes[place + len(change) :]
    try:
        _read_bytes(tmp_path_factory.getbasetemp() / "mutated.gguf", content)
    except InvalidModelError:
        return


@pytest.mark.parametrize("length", [2**60, 2**63, 2**64 - 1])
def test_absurd_counts_are_refused_at_once(tmp_path: Path, length: int) -> None:
    for count_at in (8, 16):
        content = bytearray(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
        content[count_at : count_at + 8] = struct.pack("<Q", length)
        with pytest.raises(InvalidModelError, match="claims"):
            _read_bytes(tmp_path / "forged.gguf", bytes(content))
    for kind in (0, 8):
        field = struct.pack("<Q1sIIQ", 1, b"k", 9, kind, length)
        with pytest.raises(InvalidModelError, match=r"longer than the file|ends inside"):
            _read_bytes(tmp_path / "forged.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field)

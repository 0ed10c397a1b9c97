"""The float engine: any causal model of transformers, and archives that are tied to a machine."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

pytest.importorskip("transformers")

import torch

import archiver
import cli
from archiver import frames
from archiver.codec import FrameCodec, PayloadError
from archiver.container import ArchiveReader, FrameCoding, MixerSection
from archiver.container.layout import encode_header
from archiver.errors import (
    ArchiverError,
    FrameDamagedError,
    InvalidModelError,
    MachineMismatchError,
    MissingLibraryError,
    ModelMismatchError,
    ModelMissingError,
    UnsupportedVersionError,
    UsageError,
)
from archiver.mixing.parameters import MIXER_VERSION, MixerParameters
from archiver.options import CompressOptions
from archiver.predict import float_models, machine
from archiver.predict.float_engine import FloatEngine
from archiver.predict.float_models import FLOAT_ENGINE_VERSION, read_float_model
from tests.support.tiny_float import PLACES, make_float_folder

ROOT = Path(cli.__file__).parent
TEXT = (ROOT / "tests" / "data" / "alice.txt").read_bytes()[:400]
HARD = b"caf\xc3\xa9 \x04\x04 \xff\xfe\x00 caf\xe9 " + TEXT[:150]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of one model of each kind."""
    parent = tmp_path_factory.mktemp("float")
    for kind in ("opt", "mistral", "rwkv"):
        make_float_folder(parent / kind, kind)
    return parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def opt(folders: Path, tmp_path: Path, home: Path) -> Path:
    """A copy of the OPT model that a test may change."""
    return Path(shutil.copytree(folders / "opt", tmp_path / "opt"))


def options(folder: Path, **changes: Any) -> CompressOptions:
    return CompressOptions(
        **{"engine": "float", "model": str(folder), "threads": 1, "window_tokens": 32, **changes}
    )


@pytest.fixture(scope="module")
def archive(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An archive of TEXT by the OPT model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMZIP_HOME", str(tmp_path_factory.mktemp("home")))
        return archiver.compress(TEXT, options=options(folders / "opt"))


def codec_of(given: CompressOptions) -> FrameCodec:
    codec, _ = frames.codec_for_writing(given, None)
    assert isinstance(codec, FrameCodec)
    return codec


# --- what is computed -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["opt", "mistral"])
def test_steps_give_the_logits_of_transformers_and_restart_with_half(
    folders: Path, kind: str
) -> None:
    engine = FloatEngine(read_float_model(folders / kind), window=16, threads=1)
    engine.prepare_thread()
    session = engine.session(streams=1, tokens=30, steps=1)
    size = engine.vocabulary.size
    ranks = np.random.default_rng(3).integers(0, size, 30).astype(np.int32)
    ranks[0] = engine.start_token
    ids = engine.ids(ranks.tolist())
    assert ids[0] == 0  # "<|endoftext|>"
    assert size == engine.start_token
    rank = engine.vocabulary.token_bytes.index(b"e")
    token_of = json.loads(read_float_model(folders / kind).tokenizer_json)["model"]["vocab"]
    assert engine.ids([rank]) == [token_of["e"]]
    order = engine.ids(list(range(size)))
    for place in range(30):
        logits, scales = session.advance(ranks[place : place + 1][None])
        # The cache holds up to 16 tokens, then the last 8 of them are read again.
        begin = 0 if place < 16 else 8 * (place // 8 - 1)
        with torch.inference_mode():
            network = engine.network(input_ids=torch.tensor([ids[begin : place + 1]]))
        expected = network.logits[0, -1].numpy()[order]
        assert np.abs(logits[0] - expected).max() < 1e-4
        products, row_scales, rank_scales = engine.head(logits, scales)
        bits = products[0] * (row_scales[0] * rank_scales)
        assert np.allclose(bits, expected / np.log(2), atol=1e-3)


def test_learned_places_bound_the_window(folders: Path) -> None:
    model = read_float_model(folders / "opt")
    assert FloatEngine(model, window=1000, threads=1).segment == PLACES
    assert FloatEngine(model, window=PLACES - 1, threads=1).segment == PLACES - 1


@pytest.mark.parametrize(("kind", "chunk"), [("opt", None), ("mistral", None), ("mistral", 40)])
def test_what_goes_in_comes_out(folders: Path, home: Path, kind: str, chunk: int | None) -> None:
    codec = codec_of(options(folders / kind, chunk_tokens=chunk))
    payload = codec.encode(HARD)
    streams = codec.plan(len(codec.ranks(HARD))).streams
    assert streams == 1 if chunk is None else streams > 3
    assert codec.decode(payload, len(HARD)) == HARD
    assert codec.encode(HARD) == payload


# --- archives ---------------------------------------------------------------------------------


def test_an_archive_decodes_in_another_process_and_says_what_it_needs(
    opt: Path, archive: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "text.llmz"
    path.write_bytes(archive)
    info = archiver.info(path)
    assert [frame.coding for frame in info.frames] == [FrameCoding.PREDICTOR.name.lower()]
    assert info.predictor is not None
    assert info.predictor.engine_version == FLOAT_ENGINE_VERSION
    assert (info.predictor.window_tokens, info.predictor.sink_tokens) == (32, 0)
    assert info.machine == machine.this_machine(1)

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(cli.commands, [str(argument) for argument in arguments])

    unknown = run("test", path)
    assert unknown.exit_code == ModelMissingError.exit_code
    assert "llmzip model add FOLDER --engine float" in unknown.stderr
    noted = run("model", "add", opt, "--engine", "float")
    assert noted.exit_code == 0, noted.stderr
    assert f"noted, hash {info.predictor.package_fingerprint.hex()}" in noted.stderr
    command = [sys.executable, "-m", "cli", "decompress", "-o", tmp_path / "text", path]
    decoded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert decoded.returncode == 0, decoded.stderr
    assert (tmp_path / "text").read_bytes() == TEXT


def test_info_says_it_in_plain_words(opt: Path, archive: bytes, tmp_path: Path) -> None:
    float_models.remember(opt)
    path = tmp_path / "text.llmz"
    path.write_bytes(archive)
    shown = CliRunner().invoke(cli.commands, ["info", str(path)]).stdout
    assert f"({opt})" in shown
    assert "engine    float, version 128, window 32 tokens\n" in shown
    assert "decodes   on this kind of machine only, with these versions:\n" in shown
    for name, value in machine.this_machine(1).facts:
        assert f"            {name}: {value}\n" in shown
    fields = json.loads(CliRunner().invoke(cli.commands, ["info", "--json", str(path)]).stdout)
    assert fields["model"] == str(opt)
    assert ["threads", "1"] in fields["machine"]["facts"]


def test_the_command_compresses(opt: Path, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(TEXT[:200])
    command = ["compress", "--engine", "float", "-m", str(opt), "-T", "1", str(path)]
    done = CliRunner().invoke(cli.commands, command)
    assert done.exit_code == 0, done.output
    assert archiver.decompress(f"{path}.llmz") == TEXT[:200]


# --- refusals in decoding ---------------------------------------------------------------------


def _is(name: str, value: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(f"archiver.predict.machine.{name}", lambda *_: value)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (_is("processor_name", "Another 1"), ["processor: ", " there, Another 1 here"]),
        (_is("_version", "9.9"), ["transformers: ", " there, 9.9 here"]),
        (_is("_version", "none"), ["transformers: ", " there, none here"]),
        (
            lambda patch: patch.setattr(torch, "__version__", "1.0"),
            ["torch: ", " there, 1.0 here"],
        ),
        (
            lambda patch: patch.setattr(torch.__config__, "show", lambda: "other"),
            ["build of torch: "],
        ),
        (
            lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER"),
            ["instructions: ", " there, OTHER here"],
        ),
    ],
)
def test_another_machine_is_refused_with_what_differs(
    opt: Path,
    archive: bytes,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    reasons: list[str],
) -> None:
    float_models.remember(opt)
    change(monkeypatch)
    with pytest.raises(MachineMismatchError, match="the float engine made this") as caught:
        archiver.decompress(archive)
    for reason in reasons:
        assert reason in str(caught.value)
    assert str(caught.value).count(" there, ") == 1


def test_every_difference_is_named(
    home: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _is("processor_name", "Another 1")(monkeypatch)
    with pytest.raises(MachineMismatchError) as caught:
        archiver.decompress(archive, threads=2)
    assert caught.value.exit_code == 18
    message = str(caught.value)
    assert "processor: " in message
    assert "threads: 1 there, 2 here" in message
    assert "hash" in message
    assert "is not known here" in message


def test_the_archive_s_number_of_threads_counts(
    opt: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    float_models.remember(opt)
    with pytest.raises(MachineMismatchError, match=r"threads: 1 there, 2 here$"):
        archiver.decompress(archive, threads=2)
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(frames, "_kept", threading.local())
    assert archiver.decompress(archive) == TEXT
    assert set(used) == {1}


@pytest.mark.parametrize("text", ["", "x", "0", "99999", "-1", "²"])
def test_a_forged_number_of_threads_is_a_difference(text: str) -> None:
    facts = tuple(
        (name, text if name == "threads" else value)
        for name, value in machine.this_machine(1).facts
    )
    section = machine.MachineSection(facts=facts)
    assert machine.threads_of(section) == 1
    assert machine.differences(section, None) == [f"threads: {text} there, 1 here"]


def test_facts_that_are_unknown_or_lacking_are_differences() -> None:
    facts = machine.this_machine(1).facts
    section = machine.MachineSection(facts=(*facts[1:], ("moon", "full")))
    found = machine.differences(section, 1)
    assert found == ["moon: full there, none here", f"system: none there, {facts[0][1]} here"]


def test_another_version_of_the_engine_is_refused(home: Path, archive: bytes) -> None:
    header = ArchiveReader(io.BytesIO(archive)).header
    assert header.predictor is not None
    newer = dataclasses.replace(header.predictor, engine_version=FLOAT_ENGINE_VERSION + 1)
    start = encode_header(dataclasses.replace(header, predictor=newer))
    with pytest.raises(UnsupportedVersionError, match="engine version 129; the float engine"):
        archiver.decompress(start + archive[len(start) :])


def test_a_mixer_that_needs_states_is_refused(opt: Path, archive: bytes) -> None:
    float_models.remember(opt)
    header = ArchiveReader(io.BytesIO(archive)).header
    mixer = MixerSection(version=MIXER_VERSION, parameters=MixerParameters(nearest=True).encode())
    start = encode_header(dataclasses.replace(header, mixer=mixer))
    assert len(start) == len(encode_header(header))
    with pytest.raises(UnsupportedVersionError, match="the float engine's states are not known"):
        archiver.decompress(start + archive[len(start) :])


def test_changed_files_are_refused(opt: Path, archive: bytes) -> None:
    float_models.remember(opt)
    weights = load_file(opt / "model.safetensors")
    weights["model.decoder.final_layer_norm.bias"] += 1
    save_file(weights, opt / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelMismatchError, match="the model's files have changed: their hash was"):
        archiver.decompress(archive)
    shutil.rmtree(opt)
    with pytest.raises(ModelMissingError, match="no such folder"):
        archiver.decompress(archive)


def test_a_folder_that_moved_is_found_where_it_is_added(
    opt: Path, archive: bytes, tmp_path: Path
) -> None:
    first = float_models.remember(opt)
    opt.rename(tmp_path / "moved")
    second = float_models.remember(tmp_path / "moved")
    assert second.fingerprint == first.fingerprint
    assert float_models.folder_of(first.fingerprint_bytes) == tmp_path / "moved"
    assert archiver.decompress(archive) == TEXT


def test_a_damaged_table_of_folders_is_reported(home: Path, archive: bytes) -> None:
    home.mkdir()
    for content in ("{", "[]", '{"a": 1}'):
        (home / "float_models.json").write_text(content)
        with pytest.raises(InvalidModelError, match=r"float_models\.json: .*remove it"):
            archiver.decompress(archive)


def test_damage_is_named(opt: Path, archive: bytes) -> None:
    float_models.remember(opt)
    payload_at = archiver.info(archive).header_bytes + 25
    damaged = bytearray(archive)
    damaged[payload_at + 9] ^= 1
    with pytest.raises(FrameDamagedError, match="frame 1 is damaged"):
        archiver.decompress(bytes(damaged))
    codec = codec_of(options(opt))
    content = b"some words, and some more of them"
    payload = codec.encode(content)
    for wrong_by, reason in ((-5, "more"), (5, "fewer")):
        with pytest.raises(PayloadError, match=f"it holds {reason} bytes than the frame"):
            codec.decode(payload, len(content) + wrong_by)


# --- refusals of models -----------------------------------------------------------------------


def _settings(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _tokenizer(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        data["model"] |= changes
        path.write_text(json.dumps(data), encoding="utf-8")

    return change


def _weights(edit: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def _to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _own_code(folder: Path) -> None:
    code = "open(__file__ + '.ran', 'w')\nclass C: pass\n"
    (folder / "modeling_mine.py").write_text(code)
    classes = {"AutoConfig": "modeling_mine.C", "AutoModelForCausalLM": "modeling_mine.C"}
    _settings(model_type="mine", auto_map=classes)(folder)


def _forge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


def _no_vocabulary_row(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["vocab"]["zzzz"] = 400
    path.write_text(json.dumps(data), encoding="utf-8")


_NORM = "model.decoder.layers.1.final_layer_norm.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_tokenizer(byte_fallback=True), "not byte-level BPE .*byte fallback"),
        (_tokenizer(type="Unigram"), "not byte-level BPE .*'Unigram'"),
        (_tokenizer(continuing_subword_prefix="##"), "marks words by prefix"),
        (_no_vocabulary_row, "ids beyond the model's 400 rows"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (_to_pickle, "the weights are pickles"),
        (_forge_header, "header"),
        (lambda folder: (folder / "adapter_config.json").touch(), "holds an adapter"),
        (_settings(quantization_config={"bits": 4}), "quantized in a way of their own"),
        (_settings(is_encoder_decoder=True), "encoder and decoder"),
        (_settings(model_type="nothing"), "transformers cannot load it"),
        (_own_code, "transformers cannot load it"),
        (_settings(ffn_dim=64), "transformers cannot load it"),
        (_weights(lambda weights: weights.pop(_NORM)), f"tensor {_NORM} is missing"),
        (_weights(lambda weights: weights[_NORM].fill(np.nan)), "no numbers"),
        (_weights(lambda weights: weights[_NORM].fill(np.inf)), "no numbers"),
    ],
)
def test_what_cannot_be_used_is_refused(
    opt: Path, change: Callable[[Path], None], reason: str
) -> None:
    change(opt)
    with pytest.raises(InvalidModelError, match=reason) as caught:
        codec_of(options(opt)).encode(b"some words")
    assert str(caught.value).startswith(f"{opt}: ")
    assert not list(opt.glob("*.ran"))


def test_models_without_keys_and_values_are_refused(folders: Path, home: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"cannot go on .* with keys and values"):
        codec_of(options(folders / "rwkv")).encode(b"some words")


def test_a_model_that_is_no_folder_is_refused(home: Path) -> None:
    with pytest.raises(ModelMissingError, match=r"no such folder; .* \(-m FOLDER\)"):
        archiver.compress(TEXT, options=CompressOptions(engine="float"))


def test_without_transformers_the_error_names_it(
    opt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'llmzip\[float\]'"):
        codec_of(options(opt, window_tokens=33))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steering": "random:3"}, "float engine has no steering"),
        ({"steering": "auto:15m"}, "float engine has no steering"),
        ({"local_window_tokens": 16}, "float engine has no local heads"),
        ({"engine": "double"}, "no engine 'double'; there are: exact, float"),
    ],
)
def test_options_that_it_does_not_have(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        options(Path("anywhere"), **changes)


def test_its_options_are_its_own() -> None:
    given = options(Path("anywhere"), steering="none", window_tokens=None)
    assert given.local_window == given.window == 2048
    assert given.chunking.streams == 1
    assert issubclass(MachineMismatchError, ArchiverError)


def test_names_and_adapters_are_not_for_noted_folders(opt: Path) -> None:
    command = ["model", "add", str(opt), "--engine", "float", "--name", "mine"]
    refused = CliRunner().invoke(cli.commands, command)
    assert refused.exit_code == 2
    assert "neither name nor adapter" in refused.stderr

"""What the program makes, the decoder written from FORMAT.md alone decodes to the same bytes."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

import archiver
from archiver.codec import open_codec
from archiver.container import ArchiveWriter, FrameCoding
from archiver.container import MixerSection as ProgramMixer
from archiver.container import PredictorSection as ProgramSection
from archiver.errors import ModelMismatchError
from archiver.frames import codec_for_writing
from archiver.levels import DEFAULT_LEVEL, LEVELS
from archiver.mixing.parameters import MIXER_VERSION, MixerParameters
from archiver.options import CompressOptions
from archiver.predict import registry
from archiver.predict.package import ModelPackage
from tests.reference import container, numbers
from tests.reference.coder import LARGEST_ESCAPE_BYTES, RangeDecoder, TokenTree, decode_escape
from tests.reference.container import (
    Frame,
    MixerSection,
    PredictorSection,
    read_frames,
    read_header,
)
from tests.reference.decoder import FramePredictor, decode
from tests.reference.mixer import Mixer, Parameters
from tests.reference.package import read_package
from tests.support.tiny_models import make_tiny_hf_folder

TEXT = """\
The quick brown fox jumps over the lazy dog. It was the best of times.
Der Wind weht über das Land; les élèves étaient là. Мы были там вчера.
A program that compresses text predicts the next word, then the next bit.
""".encode()
RUSSIAN = "\r\n".join(["Мы были там вчера", "были вчера там", "вчера были там"] * 5)
SCATTERED = np.random.default_rng(0).bytes(4000).replace(b"\n", b"")
ESCAPES = b"\x04\x06\x13 \xff\xfe\xfd\xff\xff then \xe2\x82 \xf5\xf5\xf5\xf5"
SMALL_WINDOW = CompressOptions(model="tiny", window_tokens=32, chunk_tokens=100)


def predicted(content: bytes, options: CompressOptions) -> bytes:
    """An archive whose one frame has coding PREDICTOR, whether or not that is shortest."""
    codec, header = codec_for_writing(options, None)
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, header)
    writer.add_frame(FrameCoding.PREDICTOR, content, codec.encode(content))
    writer.finish()
    return stream.getvalue()


PREDICTED = {
    "one byte": (b"a", {}),
    "one escaped byte": (b"\xff", {}),
    "one stream": (TEXT, {}),
    "a small window": (TEXT, {"window_tokens": 32}),
    "the smallest window": (TEXT, {"window_tokens": 16, "chunk_tokens": 70}),
    "streams of one token": (TEXT[:40], {"chunk_tokens": 1}),
    "streams of two lengths": (TEXT * 2, {"window_tokens": 32, "chunk_tokens": 60}),
    "more than 256 positions": (TEXT + TEXT[::-1], {"window_tokens": 100}),
    "escapes": (
        ESCAPES + TEXT[:90] + ESCAPES + bytes(range(256)) + TEXT[90:] + b"\xff",
        {"window_tokens": 32, "chunk_tokens": 100},
    ),
    "only escapes": (b"\x04\x06" * 400, {}),
    "line ends": (TEXT.replace(b"\n", b"\r\n") + b"<|im_start|>\n\r<|im_end|>", {}),
    "UTF-16": ((TEXT * 2).decode().encode("utf-16"), {"chunk_tokens": 100}),
    "UTF-16 from and to the middle": ((TEXT * 2).decode().encode("utf-16-be")[1:-1], {}),
    "KOI8-R and CRLF": (RUSSIAN.encode("koi8-r"), {"chunk_tokens": 200}),
    "escapes of JSON": (json.dumps(TEXT.decode()).encode() + b"\\ud800", {}),
    "percent-encoding": (quote(RUSSIAN).encode() + b"%D0 %", {}),
}


@pytest.mark.parametrize("case", PREDICTED)
def test_frames_of_the_predictor(case: str, tiny: ModelPackage) -> None:
    content, settings = PREDICTED[case]
    archive = predicted(content, CompressOptions(model="tiny", threads=1, **settings))
    assert decode(archive, tiny.path) == content


FRAMES = {
    "no frame": (b"", ()),
    "one byte": (b"a", (0,)),
    "raw": (SCATTERED, (0,)),
    "zstd": (SCATTERED[:1000] * 8, (1, 1)),
    "predictor": (TEXT, (2,)),
    "three codings": (SCATTERED[:333] * 12 + b"\n" + SCATTERED + b"\n" + TEXT, (1, 0, 2)),
}


@pytest.mark.parametrize("case", FRAMES)
def test_frames_of_every_coding(case: str, tiny: ModelPackage) -> None:
    content, codings = FRAMES[case]
    options = CompressOptions(model="tiny", window_tokens=32, chunk_tokens=100, frame_bytes=4096)
    archive = archiver.compress(content, options=options)
    frames, _ = read_frames(archive, read_header(archive).archive_bytes)
    assert tuple(frame.coding for frame in frames) == codings
    assert decode(archive, tiny.path) == content


MODELS: dict[str, dict[str, Any]] = {
    "heads in groups": {"heads": 4, "kv_heads": 2, "head_dim": 32, "ffn": 80},
    "one head a key": {"heads": 2, "kv_heads": 2, "hidden": 37, "ffn": 16, "tied": False},
    "wide heads": {"heads": 3, "kv_heads": 1, "head_dim": 64, "ffn": 128, "layers": 1},
}
"""Architectures beside the one of "tiny": head groups, odd sizes, each run length R."""

# Each model with windows and sinks: the least of both, more sinks than window, the most of both.
SETTINGS = [
    ("heads in groups", 1, 0),
    ("heads in groups", 12288, 4095),
    ("one head a key", 2, 40),
    ("one head a key", 16, 4),
    ("wide heads", 33, 1),
    ("wide heads", 5, 7),
]


@pytest.fixture(scope="module")
def other_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelPackage]:
    packages = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMZIP_HOME", str(tmp_path_factory.mktemp("models")))
        for seed, (name, shape) in enumerate(MODELS.items()):
            folder = make_tiny_hf_folder(tmp_path_factory.mktemp("hf"), seed=seed, **shape)
            kv_heads, layers = shape["kv_heads"], shape.get("layers", 2)
            local = tuple(tuple((n + h) % 2 for h in range(kv_heads)) for n in range(layers))
            packages[name] = registry.add(folder, name=f"model{seed}", local_heads=local)
    return packages


@pytest.mark.parametrize(("name", "window", "sinks"), SETTINGS)
def test_other_models_windows_and_sinks(
    name: str, window: int, sinks: int, other_models: dict[str, ModelPackage]
) -> None:
    """Payloads that no encoder made, so that all kinds of tokens and escapes occur."""
    package = other_models[name]
    fields: dict[str, Any] = {
        "engine_version": 2,
        "package_fingerprint": bytes.fromhex(package.fingerprint)[:8],
        "window_tokens": window,
        "local_window_tokens": (window + 1) // 2,
        "sink_tokens": sinks,
    }
    mixer = MixerParameters(slot_bits_max=16 + window % 3).encode()
    program = open_codec(
        ProgramSection(**fields),
        ProgramMixer(version=MIXER_VERSION, parameters=mixer),
        package=package,
        threads=1,
        chunking=LEVELS[DEFAULT_LEVEL].chunking,
    )
    reference = FramePredictor(
        PredictorSection(**fields),
        MixerSection(version=MIXER_VERSION, parameters=mixer),
        package.path,
    )
    for symbols, streams, flag in ((40, 1, 0), (30, 2, 1)):
        code = np.random.default_rng(symbols).bytes(2 * symbols)
        payload = bytes([symbols, streams, flag]) + code
        # The mixer's tables have one size for all contents up to 2,048 bytes.
        frame = Frame(number=1, coding=2, content_bytes=2048, content_hash=0, payload=payload)
        content = reference.decode(frame)
        assert program.decode(payload, len(content)) == content


MIXERS = {
    "tokens as they are": {"tokens_mixed": False},
    "no nearest states": {"nearest": False},
    "one set, nothing else": {"contexts": 0, "matches": 0, "maps": 0, "sets": 1},
    "every other part": {
        "contexts": 0b101010101010101010,
        "matches": 2,
        "maps": 5,
        "sets": 0b110100,
    },
    "a table that overflows": {"slot_bits_max": 16},
}


@pytest.mark.parametrize("case", MIXERS)
def test_parameters_of_the_mixer(case: str, tiny: ModelPackage) -> None:
    content = TEXT + b"\x04\x06\x04" + TEXT[:150]
    options = CompressOptions(model="tiny", chunk_tokens=60)
    _, header = codec_for_writing(options, None)
    assert header.predictor is not None
    section = ProgramMixer(
        version=MIXER_VERSION, parameters=MixerParameters(**MIXERS[case]).encode()
    )
    codec = open_codec(
        header.predictor, section, package=tiny, threads=1, chunking=options.chunking
    )
    stream = io.BytesIO()
    writer = ArchiveWriter(stream, dataclasses.replace(header, mixer=section))
    writer.add_frame(FrameCoding.PREDICTOR, content, codec.encode(content))
    writer.finish()
    assert decode(stream.getvalue(), tiny.path) == content


def test_the_longest_escape_ends_by_itself() -> None:
    class Always(Mixer):
        """A mixer whose every decision is 1."""

        flags = 0

        def decide(self, *_: object) -> int:
            return 1

        def flag(self, *_: object) -> int:
            self.flags += 1
            return 1

    parameters = MixerParameters(contexts=0, matches=0, maps=0, sets=1)
    mixer = Always(Parameters.read(parameters.encode()), 1 << 20, 1, RangeDecoder(b"").decide)
    assert decode_escape(mixer, mixer.streams[0]) == b"\xff" * LARGEST_ESCAPE_BYTES
    assert mixer.flags == LARGEST_ESCAPE_BYTES - 1


def test_the_example_of_the_text(tmp_path: Path) -> None:
    text = (Path(container.__file__).parents[2] / "archiver/container/FORMAT.md").read_text("utf-8")
    example = text[text.index("\n## Example") : text.index("\n## Version history")]
    digits = "".join(re.findall(r"^    ((?:[0-9A-F]{2} ?)+)$", example, re.MULTILINE))
    assert decode(bytes.fromhex(digits), tmp_path) == b"hello, hello"


def test_a_package_is_refused_unless_its_fingerprint_is_right(
    tiny: ModelPackage, tmp_path: Path
) -> None:
    assert read_package(tiny.path).fingerprint.hex() == tiny.fingerprint
    for path in tiny.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    arrays = bytearray((tmp_path / "package.safetensors").read_bytes())
    arrays[-1] ^= 1
    (tmp_path / "package.safetensors").write_bytes(arrays)
    with pytest.raises(ModelMismatchError):
        read_package(tmp_path)


def test_the_command_writes_the_content(tiny: ModelPackage, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(predicted(TEXT[:70], SMALL_WINDOW))
    done = subprocess.run(
        [sys.executable, "-m", "tests.reference.decoder", archive, tiny.path],
        capture_output=True,
        check=True,
        cwd=Path(container.__file__).parents[2],
    )
    assert done.stdout == TEXT[:70]


# The reference's own parts


def test_exp2_is_near_the_power_and_exact_at_integers() -> None:
    x = np.linspace(-40, 0, 9973).astype(np.float32)
    assert np.abs(numbers.exp2(x) / np.exp2(x.astype(np.float64)) - 1).max() < 3e-7
    whole = np.arange(-60, 1).astype(np.float32)
    assert numbers.exp2(whole).tolist() == [2.0 ** max(n, -40) for n in range(-60, 1)]


def test_quantize_rounds_ties_to_even_and_keeps_to_127() -> None:
    x = np.array([0, 0.5, 1.5, 2.5, -2.5, 127, -127], np.float32)
    assert numbers.quantize(x).codes.tolist() == [0, 0, 2, 2, -2, 127, -127]
    nothing = numbers.quantize(np.zeros(3, np.float32))
    assert nothing.codes.tolist() == [0, 0, 0]
    assert float(nothing.magnitude) == 2.0**-40


def test_no_float_is_ever_wider_than_the_text_says() -> None:
    x = np.linspace(-3, 5, 48).astype(np.float32)
    codes, scale = numbers.normalize(x, 1e-5)
    assert codes.dtype == np.int64
    assert isinstance(scale, np.float32)
    for array in (numbers.exp2(-np.abs(x)), numbers.quantize(x).scale()):
        assert array.dtype == np.float32


def unmixed(decoder: RangeDecoder) -> Mixer:
    parameters = MixerParameters(tokens_mixed=False).encode()
    return Mixer(Parameters.read(parameters), 100, 1, decoder.decide)


def test_a_token_alone_needs_no_decision() -> None:
    mixer = unmixed(RangeDecoder(b""))
    codes = np.array([1, -1])
    assert TokenTree([b"only"]).decode(np.array([1]), mixer, mixer.streams[0], codes) == 0
    assert mixer.streams[0].text == b"only"
    tree = TokenTree([b"a", b"ab", b"b"])
    weights = np.array([5, 1 << 30, 3])
    for code, rank in ((b"\x00", 2), (b"\x00\x00\x10", 1), (b"\xff" * 3 + b"\xfe", 0)):
        mixer = unmixed(RangeDecoder(code))
        assert tree.decode(weights, mixer, mixer.streams[0], codes) == rank

"""Payloads with and without the mixer."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from archiver.codec.frame import FrameCodec, encode_text, open_codec, settings_for
from archiver.levels import LEVELS
from archiver.mixing.parameters import MixerParameters
from archiver.options import CompressOptions
from archiver.predict.package import ModelPackage
from archiver.text.transforms import NONE, Swap
from benchmarks.__main__ import main
from benchmarks.inputs import read_input
from benchmarks.mixer import measure, tables, variants
from benchmarks.records import LlmzipSettings

TEXT = b"It was the best of times, it was the worst of times.\n" * 6
SETTINGS = LlmzipSettings(model="tiny", threads=1, window_tokens=32)


def _codec(package: ModelPackage) -> FrameCodec:
    sections = settings_for(package, CompressOptions(model="tiny", window_tokens=32))
    return open_codec(*sections, package=package, threads=1, chunking=LEVELS[5].chunking)


def test_each_variant_lacks_one_part() -> None:
    found = variants()
    assert len(found) == 18 + 2 + 10 + 6 + 5
    assert len(set(found.values())) == len(found)
    assert found["context: order 0"].contexts == (1 << 18) - 2
    assert found["match model: matches of 5 bytes"].matches == 1
    assert found["weight set: symbol"].sets == 0b11111


def test_payloads_are_those_of_archives(tiny: ModelPackage, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    file = read_input(tmp_path / "text", "text")
    results, record = measure(
        [file], SETTINGS, ablate=False, limit_bytes=200, kept=None, report=lambda *_: None
    )
    (result,) = results
    assert result.mixed.payload_bytes == len(_codec(tiny).encode(TEXT[:200]))
    assert result.mixed.payload_bytes < result.alone.payload_bytes
    assert record["results"][0]["change"] == result.change < 0
    assert json.loads(json.dumps(record))["limit_bytes"] == 200


def test_transforms_left_out_are_those_of_the_text(tiny: ModelPackage, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(TEXT.replace(b"\n", b"\r\n"))
    (tmp_path / "wide").write_bytes(TEXT.decode("ascii").encode("utf-16"))
    files = [read_input(tmp_path / name, name) for name in ("lines", "wide")]
    (lines, wide), record = measure(
        files, SETTINGS, ablate=True, limit_bytes=None, kept=None, report=lambda *_: None
    )
    ends, charset = "transform: line ends", "transform: character set"
    for result, name in ((lines, ends), (wide, charset)):
        plain = _codec(tiny).predict_text(
            result.file.path.read_bytes(), charsets=False, swaps=Swap.NONE
        )
        assert plain.transforms == NONE
        payload = encode_text(plain, MixerParameters(), _codec(tiny).vocabulary)
        assert result.without[name] == len(payload) != result.mixed.payload_bytes
    assert set(lines.without) - set(variants()) == {ends}
    assert set(wide.without) - set(variants()) == {charset}
    _, parts = tables([lines, wide])
    rows = {row[0]: row[1:] for row in parts}
    assert rows[ends][1] == rows[charset][0] == ""
    assert record["results"][0]["without"][ends] == lines.without[ends]


def test_the_command_keeps_probabilities(tiny: ModelPackage, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    arguments = ["mixer", str(tmp_path / "text"), "--model", "tiny", "--threads", "1", "--bytes",
                 "80", "--output", str(tmp_path / "results"), "--keep",
                 str(tmp_path / "kept")]  # fmt: skip
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    (kept,) = (tmp_path / "kept").iterdir()
    written = kept.stat().st_mtime_ns
    second = CliRunner().invoke(main, [*arguments, "--ablate"])
    assert second.exit_code == 0, second.output
    assert kept.stat().st_mtime_ns == written
    assert "context: order 0" in second.output
    assert first.output.splitlines()[1].split()[:4] == second.output.splitlines()[1].split()[:4]

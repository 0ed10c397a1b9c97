"""Payloads with and without the mixer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from archiver.codec.encoder import encode_text
from archiver.codec.frame import FrameCodec, open_codec, settings_for
from archiver.levels import LEVELS
from archiver.mixing.parameters import MixerParameters
from archiver.options import CompressOptions
from archiver.predict.package import ModelPackage
from archiver.text.transforms import NONE, Swap
from benchmarks.__main__ import main
from benchmarks.inputs import read_input
from benchmarks.mixer import excerpt, measure, tables, variants
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


def test_the_excerpt_has_files_and_parts() -> None:
    def result(file: str, alone: int, mixed: int, *without: int) -> dict[str, Any]:
        payloads = {"alone": {"payload_bytes": alone}, "mixed": {"payload_bytes": mixed}}
        parts = ("all maps", "transform: line ends", "map: order 0")
        return {"file": file, **payloads, "without": dict(zip(parts, without, strict=False))}

    whole = {"limit_bytes": None, "results": [result("b", 2000, 1900), result("a", 100, 101)]}
    ablated = {
        "limit_bytes": 5000,
        "results": [result("b", 500, 400, 404, 400, 300), result("a", 500, 400, 396)],
    }
    assert excerpt([whole, ablated]).split("\n") == [
        "| file | model alone | mixed | change |",
        "| --- | ---: | ---: | ---: |",
        "| a | 100 | 101 | +1.00 % |",
        "| b | 2,000 | 1,900 | -5.00 % |",
        "",
        "Without one kind of parts, first 5,000 bytes.",
        "",
        "| without | files | mean | most | of |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| all maps | 2 | +0.00 % | +1.00 % | b |",
        "| transform: line ends | 1 | +0.00 % | +0.00 % | b |",
    ]


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

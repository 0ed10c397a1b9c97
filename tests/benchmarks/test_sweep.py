"""Sweeps: their files, archives, records, tables and charts."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from archiver.predict.package import ModelPackage
from benchmarks.__main__ import main
from benchmarks.environment import REPOSITORY
from benchmarks.experiment_file import ExperimentError
from benchmarks.records import LlmzipSettings
from benchmarks.sweep import record as sweep_record
from benchmarks.sweep.charts import draw
from benchmarks.sweep.experiment import read_experiment
from benchmarks.sweep.programs import SweptLlmzip, chunk_for, kept_busy
from benchmarks.sweep.tables import excerpt, tables
from tests.golden.make import line_of

TEXT = line_of(600, 7) + b"The quick brown fox jumps over the lazy dog.\n"
EXPERIMENTS = sorted((REPOSITORY / "benchmarks" / "experiments").glob("sweep_*.toml"))


def series(name: str, axis: str, values: list[int], more: str = "", texts: str = '["t"]') -> str:
    return (
        f'[[series]]\nname = "{name}"\naxis = "{axis}"\nvalues = {values}\ntexts = {texts}\n'
        f"{more}\n"
    )


def experiment(folder: Path, *parts: str) -> Path:
    """An experiment file of these series, with one text beside it."""
    (folder / "text").write_bytes(TEXT)
    path = folder / "tried.toml"
    path.write_text(
        f'title = "A title"\n\n[[text]]\nname = "t"\npaths = ["text"]\n'
        f'sha256 = "{hashlib.sha256(TEXT).hexdigest()}"\n\n[llmzip]\nsteering = "none"\n\n'
        + "\n".join(parts)
    )
    return path


def run(path: Path, *more: object) -> Result:
    arguments = ["sweep", path, "--texts", path.parent, "--model", "tiny", "--threads", 1,
                 "--output", path.parent / "out", *more]  # fmt: skip
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def record_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (path.parent / "out" / "sweep-tried.json").read_text(encoding="utf-8")
    )
    return found


# --- experiment files -------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_of_the_repository(path: Path) -> None:
    found = read_experiment(path)
    texts = {text.name: text for text in found.common.texts}
    sizes = {"enwik6": 1_000_000, "alice29.txt": 152_089, "English": 10_388_499}
    assert set(texts) <= set(sizes)
    for each in found.series:
        points = each.points(found.common.llmzip, sizes)
        assert len(points) == len(each.values) * len(each.texts) > 1


def test_the_experiments_go_along_every_axis() -> None:
    found = [each for path in EXPERIMENTS for each in read_experiment(path).series]
    assert {each.axis for each in found} == {
        "bytes", "level", "window_tokens", "streams", "threads", "busy_cores",
    }  # fmt: skip
    # Longer windows are seen only by streams that are longer than they.
    (windows,) = (each for each in found if each.axis == "window_tokens")
    assert windows.llmzip.chunk_tokens is not None
    assert windows.llmzip.chunk_tokens > max(windows.values)


def test_what_two_series_ask_for_is_one_case(tmp_path: Path) -> None:
    path = experiment(
        tmp_path, series("sizes", "bytes", [100, 300]),
        series("windows", "window_tokens", [64, 2048], "limit_bytes = 300"),
        series("levels", "level", [1, 5], "limit_bytes = 300"),
        series("fast-windows", "window_tokens", [256], "limit_bytes = 300\nllmzip = {level = 1}"),
    )  # fmt: skip
    found = read_experiment(path)
    cases = [
        [point["case"] for point in each.points(found.common.llmzip, {"t": 500})]
        for each in found.series
    ]

    def case(content_bytes: int, **settings: int) -> dict[str, Any]:
        return {"text": "t", "bytes": content_bytes, "settings": settings}

    assert cases == [
        [case(100), case(300)],
        [case(300, window_tokens=64), case(300)],
        [case(300, level=1), case(300)],
        [case(300, level=1)],
    ]


def test_settings_of_the_experiment_are_what_is_usual(tmp_path: Path) -> None:
    path = experiment(
        tmp_path, series("windows", "window_tokens", [64, 2048]), series("all", "bytes", [645]),
        series("levels", "level", [1, 5]),
    )  # fmt: skip
    path.write_text(path.read_text().replace("[llmzip]", "[llmzip]\nwindow_tokens = 64\nlevel = 1"))
    found = read_experiment(path)
    windows, whole, levels = (
        [point["case"]["settings"] for point in each.points(found.common.llmzip, {"t": len(TEXT)})]
        for each in found.series
    )
    assert windows == [{}, {"window_tokens": 2048}]
    assert whole == [{}]
    assert levels == [{}, {"level": 5}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('title = "A title"\n', ""), "title is missing"),
        (("[[series]]", "[series]"), "no series"),
        (("[[series]]", "[[serie]]"), "unknown key 'serie'"),
        (("axis = ", "axe = "), "unknown key 'axe' in series"),
        (('axis = "level"', 'axis = "height"'), "series tried: no axis 'height'; there are bytes"),
        (("values = [1, 5]", "values = [1, 1]"), "series tried: the values must be there, each"),
        (("values = [1, 5]", "values = []"), "series tried: the values must be there, each once"),
        (("values = [1, 5]", 'values = ["1"]'), "values in series cannot be ['1']"),
        (("values = [1, 5]", "values = [0, 5]"), "series tried: the level must be 1 to 9, not 0"),
        (('name = "tried"', 'name = "Tried 1"'), "small letters, digits and hyphens only"),
        (('texts = ["t"]', "texts = []"), "series tried: no texts"),
        (('texts = ["t"]', 'texts = ["u"]'), "series tried: no text 'u'"),
        (("axis = ", "limit_bytes = 0\naxis = "), "series tried: limit_bytes cannot be 0"),
        (('axis = "level"', 'axis = "bytes"\nlimit_bytes = 9'), "limit_bytes and the axis bytes"),
        (('axis = "level"\nvalues = [1, 5]', 'axis = "bytes"\nvalues = [0]'),
         "series tried: no text has 0 bytes"),
        (('axis = "level"\nvalues = [1, 5]', 'axis = "streams"\nvalues = [1025]'),
         "series tried: streams must be 1 to 1024, not 1025"),
        (('axis = "level"\nvalues = [1, 5]', 'axis = "window_tokens"\nvalues = [8]'),
         "series tried: the window must be 16 to"),
        (('axis = "level"\nvalues = [1, 5]', 'axis = "busy_cores"\nvalues = [-1]'),
         "series tried: -1 cores cannot be busy"),
        (('axis = "level"\nvalues = [1, 5]', 'axis = "threads"\nvalues = [0]'),
         "series tried: threads must be at least 1, not 0"),
        (("axis = ", "llmzip = {level = 2}\naxis = "), "level in llmzip is what the series goes"),
        (("axis = ", "llmzip = {threads = 2}\naxis = "), "threads in llmzip is not the experiment"),
        (("axis = ", "llmzip = {depth = 2}\naxis = "), "unknown key 'depth' in llmzip in series"),
        (("axis = ", "llmzip = 2\naxis = "), "llmzip in series is not a table"),
        (("[llmzip]", '[llmzip]\nmodel = "x"'), "model in llmzip is not the experiment's to choo"),
    ],
)  # fmt: skip
def test_experiments_are_checked_before_anything_runs(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = experiment(tmp_path, series("tried", "level", [1, 5]))
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ExperimentError) as refused:
        read_experiment(path)
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{path}: ")


def test_two_series_of_one_name_are_refused(tmp_path: Path) -> None:
    path = experiment(tmp_path, *[series("same", "level", [1, 5])] * 2)
    with pytest.raises(ExperimentError, match="two series have the same name"):
        read_experiment(path)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (series("sizes", "bytes", [100, 700]), "series sizes: t has 645 bytes, not 700"),
        (series("levels", "level", [1], "limit_bytes = 700"), "series levels: t has 645 bytes"),
        (series("cut", "streams", [2], "llmzip = {frame_bytes = 4096}", '["long"]'),
         "series cut: 5,000 bytes of long are more than a frame of 4,096"),
    ],
)  # fmt: skip
def test_texts_must_be_long_enough_and_frames_too(tmp_path: Path, part: str, message: str) -> None:
    path = experiment(tmp_path, part)
    long = b"x" * 5000
    (tmp_path / "long").write_bytes(long)
    path.write_text(
        path.read_text().replace(
            "[llmzip]",
            f'[[text]]\nname = "long"\npaths = ["long"]\n'
            f'sha256 = "{hashlib.sha256(long).hexdigest()}"\n\n[llmzip]',
        )
    )
    refused = run(path)
    assert refused.exit_code == 1
    assert message in refused.stderr
    assert not (tmp_path / "out").exists()


# --- archives -----------------------------------------------------------------------------------


def test_an_archive_says_what_it_was_cut_into(tiny: ModelPackage, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(TEXT)
    settings = LlmzipSettings(model="tiny", threads=1, window_tokens=64, steering="none")
    for streams in (1, 3):
        fields = {name: getattr(settings, name) for name in ("model", "threads", "steering")}
        chunk = chunk_for(str(source), streams, fields)
        said = SweptLlmzip().compress(
            source, target, LlmzipSettings(**fields, window_tokens=64, chunk_tokens=chunk)
        )
        assert said["streams"] == [streams]
        assert said["parts"]["payload_bytes"] < len(TEXT)
        # Every chunk but the last is full, or one token shorter.
        assert (streams - 1) * chunk < said["tokens"] <= streams * chunk
    with pytest.raises(ValueError, match=r"tokens cannot be cut into 1000 streams, only \d+$"):
        chunk_for(str(source), 1000, fields)


def test_cores_are_busy_meanwhile_only() -> None:
    with kept_busy(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.returncode for process in processes)


def test_archives_are_made_and_decoded_in_fresh_processes(
    tiny: ModelPackage, tmp_path: Path
) -> None:
    found = run(experiment(tmp_path, series("sizes", "bytes", [300])))
    assert found.exit_code == 0, found.output
    (row,) = record_of(tmp_path / "tried.toml")["rows"]
    assert row["verified"]
    assert row["decompress"]["process_wall_s"] > row["decompress"]["wall_s"] > 0
    assert row["decompress"]["peak_bytes"] > 1 << 20


def test_a_run_and_its_rerun(
    tiny: ModelPackage, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded: list[LlmzipSettings] = []
    inner = sweep_record.code_file

    def noting(file: Any, program: Any, settings: LlmzipSettings, folder: Path) -> Any:
        coded.append(settings)
        return inner(file, program, settings, folder)

    monkeypatch.setattr(sweep_record, "code_file", noting)
    parts = [
        series("sizes", "bytes", [200, 400]), series("threads", "threads", [1, 2]),
        series("cut", "streams", [2, 1000], "limit_bytes = 400"),
        series("levels", "level", [1, 5], "limit_bytes = 400"),
        series("busy", "busy_cores", [0, 1], "limit_bytes = 400"),
    ]  # fmt: skip
    path = experiment(tmp_path, *parts)
    first = run(path)
    assert first.exit_code == 1
    found = record_of(path)
    *good, failed = sorted(found["rows"], key=lambda row: not row["verified"])
    assert len(good) == 7
    assert failed["case"]["settings"] == {"streams": 1000}
    assert "cannot be cut into 1000 streams" in failed["failure"]
    assert f"FAILED  t[:400], streams 1000: {failed['failure']}" in first.stdout
    assert [settings.threads for settings in coded] == [1, 1, 1, 2, 1, 1, 1]
    assert {settings.steering for settings in coded} == {"none"}
    assert [settings.level for settings in coded] == [None] * 5 + [1, None]
    assert good[-1]["case"]["settings"] == {"busy_cores": 1}
    small, large = good[:2]
    assert small["input"] == {
        "file": "t[:200]", "bytes": 200, "sha256": hashlib.sha256(TEXT[:200]).hexdigest(),
    }  # fmt: skip
    assert 0 < small["details"]["tokens"] < large["details"]["tokens"]
    assert {row["session"] for row in good} == {0}
    assert all("busy_cores_before" in row for row in good)
    assert "package_fingerprint" in found["experiment"]["model"]
    assert [each["name"] for each in found["series"]] == [
        "sizes", "threads", "cut", "levels", "busy",
    ]  # fmt: skip
    (cut,) = (row for row in good if "streams" in row["case"]["settings"])
    assert cut["details"]["streams"] == [2]
    assert str(tmp_path) not in json.dumps(found)
    assert {chart.name for chart in (tmp_path / "out").glob("*.png")} == {
        f"sweep-tried-{name}.png" for name in ("sizes", "threads", "cut", "levels", "busy")
    }

    # What failed is tried again, what was decoded is not.
    coded.clear()
    second = run(path)
    assert (second.exit_code, coded) == (1, [])
    again = record_of(path)
    assert [row for row in again["rows"] if row["verified"]] == [
        row for row in found["rows"] if row["verified"]
    ]
    assert len(again["sessions"]) == 2
    assert run(path, "--show").stdout == second.stdout

    # Another value, and no impossible one any more.
    experiment(tmp_path, *parts[:2], *parts[3:], series("cut", "streams", [2, 3],
               "limit_bytes = 400"))  # fmt: skip
    third = run(path)
    assert third.exit_code == 0, third.output
    assert len(coded) == 1
    assert coded[0].chunk_tokens is not None
    finished = record_of(path)
    assert len(finished["rows"]) == 8
    coded.clear()
    assert run(path).stdout == third.stdout
    assert (coded, record_of(path)) == ([], finished)

    # Without one of them: its result would be lost.
    experiment(tmp_path, *parts[:2], *parts[3:])
    refused = run(path)
    assert refused.exit_code == 1
    assert "the record holds a result of t[:400], streams 2, which the experiment" in refused.stderr
    assert record_of(path) == finished


@pytest.mark.usefixtures("in_process")
def test_archives_that_fail_are_in_the_record(
    tiny: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("it was dark")

    monkeypatch.setattr(SweptLlmzip, "decompress", refuse)
    found = run(experiment(tmp_path, series("sizes", "bytes", [200])))
    assert found.exit_code == 1
    assert found.stdout.endswith(
        "nothing was measured yet\n\nFAILED  t[:200]: decompress: ValueError: it was dark\n"
    )


def test_the_record_of_another_experiment_is_left_alone(tiny: ModelPackage, tmp_path: Path) -> None:
    path = experiment(tmp_path, series("sizes", "bytes", [200]))
    (tmp_path / "out").mkdir()
    kept = tmp_path / "out" / "sweep-tried.json"
    kept.write_text('{"benchmark": "sweep", "experiment": {}}')
    assert "is the record of another experiment or model" in run(path).stderr
    kept.write_text('{"benchmark": "steering"}')
    assert "not a record of an experiment on sweep" in run(path, "--show").stderr


# --- tables and charts ----------------------------------------------------------------------------


def case(content_bytes: int, **settings: int) -> dict[str, Any]:
    return {"text": "t", "bytes": content_bytes, "settings": settings}


def row(case: dict[str, Any], archive_bytes: int, compress_s: float, decompress_s: float,
        streams: tuple[int, ...] = (4,), busy: float | None = 0.1) -> dict[str, Any]:  # fmt: skip
    return {
        "case": case,
        "input": {"file": f"t[:{case['bytes']}]", "bytes": case["bytes"], "sha256": ""},
        "busy_cores_before": busy,
        "verified": True,
        "compressed_bytes": archive_bytes,
        "bpb": 8 * archive_bytes / case["bytes"],
        "compress": {"wall_s": compress_s, "peak_bytes": 800_000_000},
        "decompress": {"wall_s": decompress_s, "peak_bytes": 1_200_000_000},
        "details": {"tokens": case["bytes"] // 4, "streams": list(streams)},
    }


def entry(name: str, axis: str, cases: dict[int, dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "name": name, "axis": axis, "values": list(cases), "texts": ["t"], "limit_bytes": None,
        "llmzip": {}, **more,
        "points": [{"text": "t", "value": value, "case": case} for value, case in cases.items()],
    }  # fmt: skip


def record(series: list[dict[str, Any]], *rows: dict[str, Any]) -> dict[str, Any]:
    return {"title": "A title", "benchmark": "sweep", "sessions": [], "series": series,
            "rows": list(rows)}  # fmt: skip


SMALL, WHOLE = case(100_000), case(1_000_000)
FAST, ONE, TWO = case(1_000_000, level=1), case(100_000, threads=1), case(100_000, threads=2)
COMPLETE = record(
    [
        entry("sizes", "bytes", {100_000: SMALL, 1_000_000: WHOLE}),
        entry("levels", "level", {1: FAST, 5: WHOLE}),
        entry("threads", "threads", {1: ONE, 2: TWO}, limit_bytes=100_000),
        entry("windows", "window_tokens", {2048: SMALL}, llmzip={"chunk_tokens": 512}),
    ],
    row(SMALL, 12_500, 30.0, 60.0, streams=(14,)),
    row(WHOLE, 120_000, 250.0, 500.0, streams=(30, 32)),
    row(FAST, 150_000, 125.0, 250.0, busy=1.5),
    row(ONE, 12_500, 60.0, 100.0), row(TWO, 12_500, 30.0, 62.5, busy=None),
)  # fmt: skip

TABLES = """\
sizes: t
bytes of the text  archive     bpb  streams  comp s  dec s  comp tok/s  dec tok/s  comp B/s  dec B/s  comp MB  dec MB  comp s/MB  of 1 MB's  dec s/MB  of 1 MB's
100,000             12,500  1.0000       14    30.0   60.0         833        417     3,333    1,667      800   1,200      300.0      1.200     600.0      1.200
1,000,000          120,000  0.9600       32   250.0  500.0       1,000        500     4,000    2,000      800   1,200      250.0      1.000     500.0      1.000

levels: t
level  archive     bpb  streams  comp s   dec s  comp tok/s  dec tok/s  comp B/s  dec B/s  comp MB  dec MB  bytes to 5  comp s to 5  dec s to 5
1      150,000  1.2000        4  125.0*  250.0*       2,000      1,000     8,000    4,000      800   1,200    +25.00 %     -50.00 %    -50.00 %
5      120,000  0.9600       32   250.0   500.0       1,000        500     4,000    2,000      800   1,200     +0.00 %      +0.00 %     +0.00 %
* other programs kept more than 0.2 cores busy just before

threads: t, 100,000 bytes
threads  archive     bpb  streams  comp s  dec s  comp tok/s  dec tok/s  comp B/s  dec B/s  comp MB  dec MB  comp speed-up  dec speed-up
1         12,500  1.0000        4    60.0  100.0         417        250     1,667    1,000      800   1,200           1.00          1.00
2         12,500  1.0000        4    30.0   62.5         833        400     3,333    1,600      800   1,200           2.00          1.60

windows: t, chunk_tokens 512
window, tokens  archive     bpb  streams  comp s  dec s  comp tok/s  dec tok/s  comp B/s  dec B/s  comp MB  dec MB
2,048            12,500  1.0000       14    30.0   60.0         833        417     3,333    1,667      800   1,200"""  # noqa: E501


def test_tables() -> None:
    assert tables(COMPLETE) == TABLES


def test_the_excerpt_has_a_table_a_series() -> None:
    blocks = excerpt(COMPLETE).split("\n\n")
    assert blocks[0::2][:2] == ["sizes: t", "levels: t"]
    assert blocks[3].splitlines() == [
        "| level | archive | bpb | comp s | dec s | comp MB | dec MB | bytes to 5 | comp s to 5 "
        "| dec s to 5 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 1 | 150,000 | 1.200 | 125.0* | 250.0* | 800 | 1,200 | +25.00 % | -50.00 % | -50.00 % |",
        "| 5 | 120,000 | 0.960 | 250.0 | 500.0 | 800 | 1,200 | +0.00 % | +0.00 % | +0.00 % |",
    ]
    assert blocks[4].startswith("* other programs")
    assert len(blocks) == 7  # of the windows there is one row only


def test_tables_of_what_is_incomplete() -> None:
    found = copy.deepcopy(COMPLETE)
    found["rows"] = [row for row in found["rows"] if row["case"] not in (WHOLE, ONE)]
    found["rows"][-1]["details"] = {"tokens": 0, "streams": []}  # by zstd
    sizes, levels, threads, _ = tables(found).split("\n\n")
    assert sizes.splitlines()[-1].split()[-4:] == ["300.0", "-", "600.0", "-"]
    assert levels.splitlines()[2].split()[-3:] == ["-", "-", "-"]
    assert threads.splitlines()[2].split()[3:] == [
        "-", "30.0", "62.5", "-", "-", "3,333", "1,600", "800", "1,200", "-", "-",
    ]  # fmt: skip
    assert tables(record([])) == "nothing was measured yet"


def test_charts(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = draw(COMPLETE, tmp_path / "r.png")
    assert [path.name for path in drawn] == [
        "r-sizes.png", "r-levels.png", "r-threads.png", "r-windows.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    found = copy.deepcopy(COMPLETE)
    found["rows"] = found["rows"][:1]  # no million bytes that the others could be compared with
    assert [path.name for path in draw(found, tmp_path / "s.png")] == [
        "s-sizes.png", "s-windows.png",
    ]  # fmt: skip
    assert draw(record([]), tmp_path / "nothing.png") == []

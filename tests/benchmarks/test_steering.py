"""Experiments on steering: their files, archives, records, tables and charts."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from archiver.predict.package import ModelPackage
from archiver.steering import quantizers
from archiver.steering.bodies import base_vectors, encode_body
from archiver.steering.priors import Base
from benchmarks.__main__ import main
from benchmarks.environment import REPOSITORY
from benchmarks.experiment_file import ExperimentError
from benchmarks.records import LlmzipSettings
from benchmarks.steering import programs
from benchmarks.steering.charts import draw
from benchmarks.steering.experiment import read_experiment
from benchmarks.steering.plans import PLANS
from benchmarks.steering.programs import LlmzipPieces, SteeredLlmzip, vector_facts
from benchmarks.steering.tables import excerpt, gains, pays_from, tables
from tests.golden.make import line_of

TEXT = line_of(400, 7) + b"The quick brown fox jumps over the lazy dog.\n"


def experiment(folder: Path, kind: str, plan: str, content: bytes = TEXT, more: str = "") -> Path:
    """An experiment file with one text beside it."""
    (folder / "text").write_bytes(content)
    path = folder / "tried.toml"
    path.write_text(
        f'title = "A title"\nkind = "{kind}"\n{more}\n[[text]]\nname = "t"\npaths = ["text"]\n'
        f'sha256 = "{hashlib.sha256(content).hexdigest()}"\n\n[llmzip]\nwindow_tokens = 64\n\n'
        f"[{kind}]\n{plan}"
    )
    return path


def run(path: Path, *more: object) -> Result:
    arguments = [
        "steering", path, "--texts", path.parent, "--model", "tiny", "--threads", 1, "--output",
        path.parent / "out", *more,
    ]  # fmt: skip
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def record_of(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(
        (path.parent / "out" / "steering-tried.json").read_text(encoding="utf-8")
    )
    return record


# --- experiment files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "benchmarks" / "experiments").glob("steering_*.toml")),
    ids=lambda path: path.stem,
)  # fmt: skip
def test_experiments_of_the_repository(path: Path) -> None:
    found = read_experiment(path)
    cases = found.plan.cases(found.common.texts[0].name, 2_000_000)
    assert len({json.dumps(case.as_dict(), sort_keys=True) for case in cases}) == len(cases) > 1
    assert json.loads(json.dumps(found.as_dict()))["kind"] in PLANS


def test_every_kind_has_an_experiment() -> None:
    paths = (REPOSITORY / "benchmarks" / "experiments").glob("steering_*.toml")
    assert {read_experiment(path).plan.kind for path in paths} == set(PLANS)


def test_an_experiment(tmp_path: Path) -> None:
    path = experiment(tmp_path, "priors", 'vectors = 2\nsteps = 3\nseed = 4\nlearned = [0, 50]\n'
                      'priors = ["gaussian", "scales"]\nbins = [7, 15]\n')  # fmt: skip
    found = read_experiment(path)
    assert (found.common.name, found.common.title) == ("tried", "A title")
    assert found.common.llmzip == LlmzipSettings(window_tokens=64)
    cases = found.plan.cases("t", 100)
    assert [case.role for case in cases] == [
        "none", "gaussian, 7 bins", "gaussian, 15 bins", "scales, 7 bins", "scales, 15 bins",
        "learned", "learned, 50 streams",
    ]  # fmt: skip
    assert cases[-2].settings.steering == "trained:2:3steps"
    assert cases[-2].training is None
    assert cases[-1].settings == cases[1].settings
    assert cases[-1].training is not None
    assert (cases[-1].training.prior, cases[-1].training.streams) == ("scales", 50)
    assert cases[1].as_dict() == {
        "role": "gaussian, 7 bins",
        "span": {"text": "t", "begin": 0, "end": 100},
        "program": "llmzip",
        "settings": {"steering": "FILE", "embed_steering": True},
        "training": {
            "span": {"text": "t", "begin": 0, "end": 100}, "vectors": 2, "steps": 3, "seed": 4,
            "prior": "gaussian", "bins": 7, "streams": None,
        },
    }  # fmt: skip


def test_halves_are_apart(tmp_path: Path) -> None:
    path = experiment(
        tmp_path, "halves", 'vectors = 2\nsteps = 3\nseed = 0\nprior = "gaussian"\nbins = 7\n'
    )
    none, auto, file = read_experiment(path).plan.cases("t", 101)
    assert none.span == auto.span == file.span
    assert file.training is not None
    assert (file.training.span.begin, file.training.span.end) == (0, 50)
    assert (file.span.begin, file.span.end) == (50, 101)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind = ", "kind2 = "), "kind None; there are chunks, kinds, priors"),
        (('kind = "chunks"', 'kind = "lumps"'), "kind 'lumps'; there are chunks"),
        (("title = ", "titel = "), "unknown key 'titel'"),
        (('title = "A title"\n', ""), "title is missing"),
        (("piece_bytes", "piece_byte"), "unknown key 'piece_byte' in chunks"),
        (("piece_bytes = 90", 'piece_bytes = "90"'), "piece_bytes in chunks cannot be '90'"),
        (("piece_bytes = 90", "piece_bytes = true"), "piece_bytes in chunks cannot be True"),
        (("piece_bytes = 90", "chunk_tokens = [1.5]"), r"chunk_tokens in chunks cannot be \[1.5\]"),
        (("piece_bytes = 90", ""), "piece_bytes is missing in chunks"),
        (("window_tokens", "window"), "unknown key 'window' in llmzip"),
        (("[[text]]", "[text]"), "no texts"),
        (("[llmzip]", '[[text]]\nname = "t"\npaths = ["text"]\nsha256 = ""\n[llmzip]'),
         "two texts have the same name"),
        (("title = ", "title "), "not TOML"),
    ],
)  # fmt: skip
def test_keys_are_strict(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = experiment(tmp_path, "chunks", "piece_bytes = 90\n")
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ExperimentError, match=message):
        read_experiment(path)


@pytest.mark.parametrize(
    ("kind", "plan", "message"),
    [
        ("kinds", 'steering = ["none", "random:0"]', "number of random vectors must be 1 to 256"),
        ("priors", 'vectors = 1\nsteps = 1\nseed = 0\nlearned = []\nbins = [3]\n'
         'priors = ["flat"]', "no prior 'flat'"),
    ],
)  # fmt: skip
def test_values_are_checked_before_anything_runs(
    tmp_path: Path, kind: str, plan: str, message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        read_experiment(experiment(tmp_path, kind, plan))


def test_other_texts_are_refused(tiny: ModelPackage, tmp_path: Path) -> None:
    path = experiment(tmp_path, "chunks", "piece_bytes = 90\n")
    (tmp_path / "text").write_bytes(b"other")
    refused = run(path)
    assert refused.exit_code == 1
    found = hashlib.sha256(b"other").hexdigest()
    assert f"text t: its SHA-256 is {found}" in refused.stderr
    (tmp_path / "text").unlink()
    assert "No such file or directory" in run(path).stderr
    assert not (tmp_path / "out").exists()


# --- archives -----------------------------------------------------------------------------------


def test_pieces_are_archives_of_their_own(tiny: ModelPackage, tmp_path: Path) -> None:
    source, target, decoded = (tmp_path / name for name in ("source", "target", "decoded"))
    source.write_bytes(TEXT)
    settings = LlmzipSettings(model="tiny", threads=1, window_tokens=64, steering="none")
    alone = []
    for begin in range(0, len(TEXT), 300):
        (tmp_path / "piece").write_bytes(TEXT[begin : begin + 300])
        alone.append(SteeredLlmzip().compress(tmp_path / "piece", target, settings)["parts"])
    pieces = dataclasses.replace(settings, frame_bytes=300)
    said = LlmzipPieces().compress(source, target, pieces)
    assert said["pieces"] == len(alone) == 2
    for name in ("payload_bytes", "side_information_bytes"):
        assert said["parts"][name] == sum(parts[name] for parts in alone)
    assert sum(said["parts"].values()) == target.stat().st_size
    LlmzipPieces().decompress(target, decoded, pieces)
    assert decoded.read_bytes() == TEXT


def test_facts_of_vectors(tiny: ModelPackage) -> None:
    """Four equally frequent codes have two bits; codes that are their means have none."""
    codes = np.tile(np.array([-3, -1, 1, 3], np.int8), (2, 12))
    quantized = quantizers.gaussian(codes * np.float32(0.25), 7)
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, tiny)
    facts = vector_facts(body, tiny)
    assert facts["entropy_bits"] == 2.0
    assert (facts["symbols"], facts["coordinates"], facts["bytes"]) == (4, 96, len(body))
    assert facts["code_bytes"] >= 2 * 96 / 8
    assert facts["compression"] == 4 * 96 / len(body)

    base = Base(ranks=(5, 6))
    prompt = base_vectors(base, tiny)
    values = prompt.codes.astype(np.float32) * prompt.scales[:, None]
    quantized = quantizers.scales(values, 0.2, base, prompt)
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, tiny)
    facts = vector_facts(body, tiny)
    assert (facts["entropy_bits"], facts["symbols"]) == (0.0, 1)


def test_choosing_is_timed(
    tiny: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archiver.steering import choice

    (tmp_path / "source").write_bytes(TEXT)
    inner = choice.best_built_in
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(programs.time, "perf_counter", lambda: next(clock))
    settings = LlmzipSettings(model="tiny", threads=1, window_tokens=64)
    said = SteeredLlmzip().compress(tmp_path / "source", tmp_path / "target", settings)
    assert said["choosing_s"] == 2.5
    assert choice.best_built_in is inner


# --- whole experiments --------------------------------------------------------------------------


def test_archives_are_made_and_decoded_in_fresh_processes(
    tiny: ModelPackage, tmp_path: Path
) -> None:
    found = run(experiment(tmp_path, "kinds", 'steering = ["random:2"]\n'))
    assert found.exit_code == 0, found.output
    (made,) = record_of(tmp_path / "tried.toml")["rows"]
    assert made["verified"]
    assert made["compress"]["process_wall_s"] > made["compress"]["wall_s"] > 0


@pytest.mark.usefixtures("in_process")
def test_a_run_and_its_rerun(tiny: ModelPackage, tmp_path: Path) -> None:
    path = experiment(
        tmp_path, "kinds", 'steering = ["none", "random:2", "fixed:The best of times"]\n'
    )
    first = run(path)
    assert first.exit_code == 0, first.output
    record = record_of(path)
    assert [row["case"]["role"] for row in record["rows"]] == [
        "none", "random:2", "fixed:The best of times",
    ]  # fmt: skip
    for row in record["rows"]:
        assert row["verified"]
        assert row["session"] == 0
        assert row["input"]["sha256"] == hashlib.sha256(TEXT).hexdigest()
        assert row["compressed_bytes"] == sum(row["parts"].values())
    assert record["rows"][1]["details"]["steering"]["vectors"] == 2
    assert record["rows"][1]["parts"]["side_information_bytes"] == 3
    (session,) = record["sessions"]
    assert {"git", "versions", "hardware", "date", "threads"} <= set(session)
    assert record["experiment"]["model"]["package_fingerprint"] == tiny.fingerprint
    assert str(tmp_path) not in json.dumps(record)
    assert "random:2" in first.stdout
    assert (tmp_path / "out" / "steering-tried.png").read_bytes().startswith(b"\x89PNG")

    # One archive is lost from the record, one had failed: these are made again, the first is not.
    kept = copy.deepcopy(record)
    kept["rows"][0]["compress"]["wall_s"] = 123.0
    kept["rows"][1] |= {"verified": False, "failure": "it was dark"}
    del kept["rows"][2]
    (tmp_path / "out" / "steering-tried.json").write_text(json.dumps(kept))
    second = run(path)
    assert second.exit_code == 0, second.output
    again = record_of(path)
    assert [row["session"] for row in again["rows"]] == [0, 1, 1]
    assert again["rows"][0]["compress"]["wall_s"] == 123.0
    sizes = [row["compressed_bytes"] for row in record["rows"]]
    assert [row["compressed_bytes"] for row in again["rows"]] == sizes
    third = run(path)
    assert third.exit_code == 0
    assert record_of(path) == again
    assert run(path, "--show").stdout == third.stdout


def test_the_record_of_another_experiment_is_left_alone(tiny: ModelPackage, tmp_path: Path) -> None:
    path = experiment(tmp_path, "kinds", 'steering = ["none"]\n')
    (tmp_path / "out").mkdir()
    kept = tmp_path / "out" / "steering-tried.json"
    kept.write_text('{"benchmark": "steering", "experiment": {}}')
    assert "is the record of another experiment or model" in run(path).stderr
    kept.write_text('{"benchmark": "files"}')
    assert "not a record of an experiment on steering" in run(path).stderr
    kept.write_text("{")
    assert "no record there" in run(path, "--show").stderr
    assert kept.read_text() == "{"


@pytest.mark.usefixtures("in_process")
def test_priors_share_one_training(tiny: ModelPackage, tmp_path: Path) -> None:
    """The text is long enough to train on; nobody asks whether zstd would do better."""
    content = line_of(40_000, 1)
    path = experiment(
        tmp_path, "priors", 'vectors = 2\nsteps = 2\nseed = 0\nlearned = []\n'
        'priors = ["gaussian", "scales"]\nbins = [7]\n', content,
    )  # fmt: skip
    found = run(path)
    assert found.exit_code == 0, found.output
    plain, gaussian, scales = record_of(path)["rows"]
    assert "training" not in plain
    assert gaussian["training"]["trained_s"] == scales["training"]["trained_s"] > 0
    assert gaussian["training"]["steps"] == scales["training"]["steps"] == 2
    assert gaussian["training"]["square_error"] > 0
    kept = {file.suffix for file in (tmp_path / "out" / "steering-tried.kept").iterdir()}
    assert kept == {".checkpoint", ".steer"}


@pytest.mark.usefixtures("in_process")
def test_a_training_that_fails_is_reported(tiny: ModelPackage, tmp_path: Path) -> None:
    path = experiment(
        tmp_path, "halves", 'vectors = 2\nsteps = 2\nseed = 0\nprior = "gaussian"\nbins = 7\n'
    )
    found = run(path)
    assert found.exit_code == 1
    assert "FAILED  t, file: training: UsageError: training needs texts of 6,144" in found.stdout
    rows = record_of(path)["rows"]
    assert [row["verified"] for row in rows] == [True, True, False]


# --- tables -----------------------------------------------------------------------------------


def row(
    role: str, payload: int, side: int = 0, size: int = 1000, text: str = "t", **more: Any
) -> dict[str, Any]:
    usage = {"wall_s": 2.0, "cpu_s": 3.0}
    settings = {"chunk_tokens": more.pop("chunk_tokens")} if "chunk_tokens" in more else {}
    return {
        "case": {"role": role, "span": {"text": text, "begin": 0, "end": size},
                 "settings": settings},
        "input": {"file": text, "bytes": size, "sha256": ""},
        "verified": True,
        "compressed_bytes": payload + side + 50,
        "bpb": 8 * (payload + side + 50) / size,
        "parts": {"payload_bytes": payload, "side_information_bytes": side, "container_bytes": 50},
        "compress": usage,
        "decompress": usage,
        "details": more.pop("details", {}),
        **more,
    }  # fmt: skip


def record(kind: str, *rows: dict[str, Any]) -> dict[str, Any]:
    return {"title": "A title", "experiment": {"kind": kind}, "rows": list(rows)}


FACTS = {"coordinates": 100, "bytes": 50, "code_bytes": 45, "entropy_bits": 3.5, "symbols": 12,
         "compression": 8.0}  # fmt: skip
RECORDS = {
    "chunks": (
        record("chunks", row("pieces of 2,000 bytes", 200), row("one stream", 150)),
        """\
t, 1,000 bytes
                       text bytes  of the text  all bytes     bpb  comp s  dec s
pieces of 2,000 bytes         200       0.2000        250  2.0000     2.0    2.0
one stream                    150       0.1500        200  1.6000     2.0    2.0""",
    ),
    "kinds": (
        record(
            "kinds", row("none", 200),
            row("auto", 180, 2, details={"steering": {"kind": "built_in", "name": "wiki",
                                                      "vectors": 16}}),
        ),
        """\
t, 1,000 bytes
steering  chosen  vectors  side bytes  text bytes    change  all bytes   change  comp s  dec s
none           -        -           0         200   +0.00 %        250  +0.00 %     2.0    2.0
auto        wiki       16           2         180  -10.00 %        232  -7.20 %     2.0    2.0""",
    ),
    "priors": (
        record(
            "priors", row("none", 200),
            row("gaussian, 7 bins", 160, 51, details={"vectors": FACTS},
                training={"square_error": 0.00123}),
        ),
        """\
t, 1,000 bytes
prior             vector bits  a coordinate  entropy  in all       MSE  float32 /  text bits    change  all bytes   change
none                        -             -        -       -         -          -      1,600   +0.00 %        250  +0.00 %
gaussian, 7 bins          400        4.0000   3.5000     350  1.23e-03        8.0      1,280  -20.00 %        261  +4.40 %""",  # noqa: E501
    ),
    "growth": (
        record(
            "growth", row("none", 100, size=500), row("2", 90, 20, size=500),
            row("none", 200), row("2", 180, 10), row("4", 190, 30),
        ),
        """\
t
bytes  vectors  side bytes  text bytes    change  all bytes   change  comp s  dec s
500       none           0         100   +0.00 %        150  +0.00 %     2.0    2.0
500          2          20          90  -10.00 %        160  +6.67 %     2.0    2.0
1,000     none           0         200   +0.00 %        250  +0.00 %     2.0    2.0
1,000        2          10         180  -10.00 %        240  -4.00 %     2.0    2.0
1,000        4          30         190   -5.00 %        270  +8.00 %     2.0    2.0
k = 2: pays from 771 bytes
k = 4: does not pay up to 1,000 bytes""",
    ),
    "halves": (
        record("halves", row("none", 200), row("auto", 190, 2),
               row("file", 150, 9, training={"file_bytes": 4321})),
        """\
second half of  bytes  none  auto   change  file    change  file's bytes
t               1,000   250   242  -3.20 %   209  -16.40 %         4,321
The file's own bytes are not counted: it serves any number of archives.""",
    ),
    "choice": (
        record(
            "choice", row("none", 200),
            row("auto", 190, 2, details={"choosing_s": 0.1, "steering": {"name": "wiki"}}),
            row("none", 200, chunk_tokens=512),
            row("auto", 200, chunk_tokens=512, details={"choosing_s": 0.5}),
        ),
        """\
chunks: default
text  bytes  none  auto   change  chosen  choosing s  of comp s  comp s  without
t     1,000   250   242  -3.20 %    wiki        0.10      5.0 %     2.0      2.0
mean change -3.20 %, larger 0 of 1, choosing 5.0 % of compress time in all

chunks: 512 tokens
text  bytes  none  auto   change  chosen  choosing s  of comp s  comp s  without
t     1,000   250   250  +0.00 %       -        0.50     25.0 %     2.0      2.0
mean change +0.00 %, larger 0 of 1, choosing 25.0 % of compress time in all""",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANS)
def test_tables(kind: str) -> None:
    assert tables(RECORDS[kind][0]) == RECORDS[kind][1]


def test_excerpt() -> None:
    assert (
        excerpt(RECORDS["halves"][0])
        == """\
**A title**

| second half of | bytes | none | auto | change | file | change | file's bytes |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| t | 1,000 | 250 | 242 | -3.20 % | 209 | -16.40 % | 4,321 |

The file's own bytes are not counted: it serves any number of archives."""
    )
    assert "\n\nt, 1,000 bytes\n\n| steering | chosen " in excerpt(RECORDS["kinds"][0])


@pytest.mark.parametrize("kind", PLANS)
def test_charts(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw(RECORDS[kind][0], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert not draw(record(kind), tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


@pytest.mark.parametrize("kind", PLANS)
def test_tables_of_what_is_incomplete(kind: str) -> None:
    assert tables(record(kind)) == "nothing was measured yet"
    failed = {"case": {"role": "auto", "span": {"text": "t"}}, "verified": False, "failure": "dark"}
    shown = tables(record(kind, row("auto", 100, details={"choosing_s": 1.0}), failed))
    assert shown.endswith("FAILED  t, auto: dark")


def test_where_steering_begins_to_pay() -> None:
    assert pays_from({}) is None
    assert pays_from({100: 0.1}) == 100
    assert pays_from({100: 0.1, 1000: 0.0}) is None
    assert pays_from({100: -0.1, 1000: 0.1}) == pytest.approx(math.sqrt(100 * 1000))
    assert pays_from({100: 0.2, 400: -0.3, 800: 0.1, 1600: 0.4}) == pytest.approx(400 * 2**0.75)
    assert pays_from({100: 0.0, 1000: 0.1}) == pytest.approx(100)


def test_gains_need_an_archive_without() -> None:
    assert gains([row("2", 90), row("none", 100), row("4", 40)]) == {
        "4": {1000: pytest.approx(0.4)}
    }

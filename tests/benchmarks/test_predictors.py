"""Comparisons of predictors: their files, products, records, tables and charts."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from archiver.predict import home
from benchmarks import readme
from benchmarks.__main__ import main
from benchmarks.environment import REPOSITORY
from benchmarks.experiment_file import ExperimentError
from benchmarks.predictors import workbench
from benchmarks.predictors.charts import draw
from benchmarks.predictors.experiment import read_experiment
from benchmarks.predictors.steps import Step
from benchmarks.predictors.tables import effective_parameters, excerpt, tables
from benchmarks.runner import JobReport
from tests.golden.make import line_of
from tests.support.tiny_models import make_tiny_hf_folder

TEXT = line_of(9_999, 7) + b"\n"  # 5 % are held out of training: some windows
BEGIN, LIMIT = 1000, 400
NEAREST = "quantize --method rtn --bits 4 --group 32 --no-search --head-group 32"
TRAINING = "--batch-tokens 64 --sequence 32 --eval-tokens 32 --rank 0"
LOOK = "--windows 2 --window-tokens 32"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hf_folder(
        tmp_path_factory.mktemp("tiny") / "model",
        seed=11, hidden=64, layers=3, heads=2, kv_heads=1, head_dim=32, ffn=128,
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text and a model; LLMZIP_HOME is elsewhere, and empty."""
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "users-home"))
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "model").symlink_to(model_folder)
    return tmp_path


def experiment(folder: Path, *predictors: str, more: str = "") -> Path:
    """An experiment file of these predictors, each the TOML after its name."""
    path = folder / "tried.toml"
    tables = "\n".join(f"[[predictor]]\nname = {predictor}" for predictor in predictors)
    path.write_text(
        f'title = "A title"\n{more}\n[[text]]\nname = "t"\npaths = ["text"]\nbegin = {BEGIN}\n'
        f'limit_bytes = {LIMIT}\nsha256 = "{hashlib.sha256(TEXT).hexdigest()}"\n\n[llmzip]\n'
        f'window_tokens = 64\nsteering = "none"\nmixing = false\n\n{tables}\n'
    )
    return path


def base(name: str = "plain") -> str:
    return f'"{name}"\nbase = "{{here}}/model"\n'


def made(name: str, *steps: str, start: str = "plain", more: str = "") -> str:
    return f'"{name}"\nbase = "{start}"\nsteps = {json.dumps(steps)}\n{more}\n'


def run(path: Path, *more: object) -> Result:
    arguments = ["predictors", path, "--texts", path.parent, "--threads", 1, "--output",
                 path.parent / "out", *more]  # fmt: skip
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def record_of(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(
        (path.parent / "out" / "predictors-tried.json").read_text(encoding="utf-8")
    )
    return record


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, in_process: None) -> Iterator[list[str]]:
    """The commands of `llmzip model` that were run, by name, as they come; torch is as before."""
    import torch

    threads = torch.get_num_threads()
    inner, seen = workbench.run_job, list[str]()

    def noting(target: str, arguments: dict[str, Any], folder: Path) -> JobReport:
        if target.endswith(":run_command"):
            seen.append(arguments["words"][0])
        return inner(target, arguments, folder)

    monkeypatch.setattr(workbench, "run_job", noting)
    yield seen
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


# --- experiment files -------------------------------------------------------------------------


def test_the_experiment_of_the_repository() -> None:
    found = read_experiment(REPOSITORY / "benchmarks" / "experiments" / "predictors.toml")
    by_name = {predictor.name: predictor for predictor in found.predictors}
    asked = {
        "int8", "q4_1", "nf4", "gptq-4", "gptq-3", "gptq-2", "rtn-4", "rtn-2", "magnitude-20",
        *(f"minus-{n}-by-{how}" for n in (2, 4, 8) for how in ("distance", "bits")),
        "healed-lora-adamw", "healed-all-adamw", "healed-all-muon", "healed-longer",
        "healed-longer-gptq-4", "minus-4-refitted", "refitted-healed",
    }  # fmt: skip
    assert set(by_name) == asked | {"tuned"}
    assert not by_name["int8"].steps
    assert {by_name[name].base for name in asked} == {"smollm2-135m-instruct"}
    assert by_name["tuned"].base == "default"
    healed = by_name["healed-longer-gptq-4"]
    assert [step.command for step in healed.steps] == ["prune", "prune", "heal", "quantize"]
    # The same four blocks are missing, whether or not the others are refitted.
    first, second = by_name["minus-4-by-bits"].steps
    assert first.words == second.words
    assert by_name["minus-4-refitted"].steps[0].options()["remove"] == (13, 14, 16, 17)
    assert {text.name for text in found.common.texts} == {"enwik6, middle", "alice29.txt"}
    middle = found.common.texts[0]
    assert (middle.begin, middle.limit_bytes) == (475_000, 50_000)
    # What is healed on is apart from what is measured.
    mixture = (REPOSITORY / "benchmarks" / "experiments" / "healing.toml").read_text()
    assert not [text.sha256 for text in found.common.texts if text.sha256 in mixture]


def test_predictors_go_on_from_others(tmp_path: Path) -> None:
    path = experiment(
        tmp_path, base(), made("small", "prune --layers 1"),
        made("packed", NEAREST, start="small", more='against = "small"'), made("again", NEAREST),
    )  # fmt: skip
    plain, small, packed, again = read_experiment(path).predictors
    assert {predictor.base for predictor in (plain, small, packed, again)} == {"{here}/model"}
    assert packed.steps == (*small.steps, *again.steps)
    assert (plain.against, packed.against, again.against) == ("plain", "small", "plain")
    assert packed.as_dict() == {
        "name": "packed", "base": "{here}/model", "steps": ["prune --layers 1", NEAREST],
        "against": "small", "family": None,
    }  # fmt: skip


def test_command_lines_of_steps() -> None:
    places = {"here": Path("/h"), "texts": Path("/t")}
    heal = Step.parse("heal {here}/mix.toml --root a={texts}/a --steps 2").placed(places)
    assert heal.trains
    assert heal.command_line("small", "whole", Path("/run")) == [
        "heal", "small", "whole", "/h/mix.toml", "--root", "a=/t/a", "--steps", "2", "--run",
        "/run",
    ]  # fmt: skip
    prune = Step.parse("prune --layers 2").placed(places)
    assert prune.command_line("model", "whole", Path("/out")) == [
        "prune", "model", "--layers", "2", "-o", "/out",
    ]  # fmt: skip
    assert not prune.inputs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('title = "A title"\n', ""), "title is missing"),
        (("title = ", 'model = "x"\ntitle = '), "unknown key 'model'"),
        (("steps = ", "step = "), "unknown key 'step' in predictor"),
        (('["prune --layers 1"]', '"prune --layers 1"'), "steps in predictor cannot be 'prune"),
        (('name = "small"', 'name = "plain"'), "two predictors have the same name"),
        (('name = "small"', 'name = "Small"'), "'Small' cannot be a model's name"),
        (('base = "plain"', 'base = "small"'), "small starts from 'small', which comes later"),
        (("steps = ", 'against = "x"\nsteps = '), "small is compared with 'x', which is not there"),
        (("prune --layers 1", "trim"), "small: step 'trim': the commands are prune, localize, q"),
        (("prune --layers 1", ""), "small: step '': the commands are prune"),
        (("prune --layers 1", "prune '"), 'small: step "prune \'": No closing quotation'),
        (("prune --layers 1", "prune --layer 1"), "small: step 'prune --layer 1': No such option"),
        (("prune --layers 1", "prune --layers x"), "'x' is not a valid integer"),
        (("prune --layers 1", "prune x --layers 1"), "unexpected extra argument"),
        (("prune --layers 1", "heal x"), "Missing option '--steps'"),
        (("prune --layers 1", "prune --layers 1 --name x"), "--name is not the experiment's to"),
        (("prune --layers 1", "prune --layers 1 -T 2"), "-T is not the experiment's to choose"),
        (("prune --layers 1", "prune --layers 1 -o x"), "-o is not the experiment's to choose"),
        (("prune --layers 1", "heal x --steps 1 --run x"), "--run is not the experiment's to"),
        (("prune --layers 1", "heal x --steps 1 --finish"), "--finish is not the experiment's"),
        (("prune --layers 1", "tune x --steps 1"), "tune makes weights with --rank 0 only"),
        (("window_tokens = 64", 'model = "x"'), "model in llmzip is not the experiment's"),
        (("window_tokens = 64", "threads = 2"), "threads in llmzip is not the experiment's"),
    ],
)  # fmt: skip
def test_experiments_are_checked_before_anything_runs(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = experiment(tmp_path, base(), made("small", "prune --layers 1"))
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ExperimentError) as refused:
        read_experiment(path)
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((f"limit_bytes = {LIMIT}", "limit_bytes = 10000"), "10,000 bytes: not 10000 from 1000"),
        ((f"begin = {BEGIN}", "begin = 10000"), "text t has 10,000 bytes: none from 10000"),
        ((f"begin = {BEGIN}", "begin = -1"), "text t has 10,000 bytes: none from -1 on"),
        (("{here}/model", "{here}/nothing"), "predictor plain: {here}/nothing: neither a file"),
        (("prune", "prune --calibrate {here}/no"), "no: No such file or directory"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("in_process")
def test_what_is_missing_is_said_before_anything_runs(
    place: Path, change: tuple[str, str], message: str
) -> None:
    path = experiment(place, base(), made("small", "prune --layers 1"))
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    refused = run(path)
    assert refused.exit_code == 1
    assert message in refused.stderr
    assert not list((place / "out").glob("*.json"))


# --- whole experiments --------------------------------------------------------------------------


def test_archives_are_made_and_decoded_in_fresh_processes(place: Path) -> None:
    found = run(experiment(place, base()))
    assert found.exit_code == 0, found.output
    (row,) = record_of(place / "tried.toml")["rows"]
    assert row["verified"]
    assert row["decompress"]["process_wall_s"] > row["decompress"]["wall_s"] > 0
    assert row["decompress"]["peak_bytes"] > 1 << 20


def test_a_run_and_its_rerun(place: Path, commands: list[str]) -> None:
    path = experiment(place, base(), made("packed", NEAREST))
    first = run(path)
    assert first.exit_code == 0, first.output
    assert commands == ["add", "quantize", "add"]
    record = record_of(path)
    assert record["experiment"]["llmzip"]["mixing"] is False
    assert {"engine_version", "mixer_version"} <= set(record["experiment"])
    (session,) = record["sessions"]
    assert {"git", "versions", "hardware", "date", "threads"} <= set(session)
    content = TEXT[BEGIN : BEGIN + LIMIT]
    plain, packed = record["rows"]
    for row in (plain, packed):
        assert row["verified"]
        assert row["session"] == 0
        assert row["input"] == {
            "file": "t", "bytes": LIMIT, "sha256": hashlib.sha256(content).hexdigest(),
        }  # fmt: skip
        assert row["details"]["package_fingerprint"] == row["predictor"]["fingerprint"]
        assert row["predictor"]["layers"] == 3
        # Embedding, norms; queries, keys, values, output, feed-forward and two norms a block.
        assert row["predictor"]["parameters"] == 400 * 64 + 64 + 3 * (
            64 * (64 + 32 + 32 + 64 + 3 * 128) + 2 * 64
        )
    assert packed["case"]["steps"] == [{"words": NEAREST.split(), "inputs": {}}]
    assert plain["predictor"]["steps"] == []
    (step,) = packed["predictor"]["steps"]
    assert {"words", "inputs", "date", "git", "threads", "usage"} == set(step)
    assert packed["predictor"]["history"][-1].startswith("quantized: rtn 4 bits by 32")
    # 4 bits, a scale and a minimum of 16 bits for 32 weights; 8 bits and a scale of 32 for 64.
    assert packed["predictor"]["bits_a_weight"] == 5.0
    assert 8.25 < plain["predictor"]["bits_a_weight"] < 8.75
    assert packed["predictor"]["stored_bytes"] < plain["predictor"]["stored_bytes"]
    assert plain["predictor"]["stored_bytes"] == plain["predictor"]["package_bytes"]
    assert str(place) not in json.dumps(record)
    assert {chart.name for chart in (place / "out").glob("*.png")} == {
        "predictors-tried-bytes.png", "predictors-tried-speed.png",
    }  # fmt: skip

    # The user's home is as it was; in the benchmark's own, only the base's package stays.
    assert os.environ["LLMZIP_HOME"] == str(place / "users-home")
    assert not home.packages_folder().exists()
    kept = place / "out" / "predictors.kept"
    assert len(list((kept / "home" / "packages").iterdir())) == 1

    # One archive failed: it is made again, of weights that are there.
    damaged = copy.deepcopy(record)
    damaged["rows"][0]["compress"]["wall_s"] = 123.0
    damaged["rows"][1] |= {"verified": False, "failure": "it was dark"}
    (place / "out" / "predictors-tried.json").write_text(json.dumps(damaged))
    commands.clear()
    second = run(path)
    assert second.exit_code == 0, second.output
    assert commands == ["add"]
    again = record_of(path)
    assert [row["session"] for row in again["rows"]] == [0, 1]
    assert again["rows"][0]["compress"]["wall_s"] == 123.0
    assert again["rows"][1]["compressed_bytes"] == packed["compressed_bytes"]
    assert again["rows"][1]["predictor"] == packed["predictor"]

    commands.clear()
    third = run(path)
    assert (third.exit_code, commands) == (0, [])
    assert record_of(path) == again
    assert run(path, "--show").stdout == third.stdout

    # A predictor more, of the same weights, packed twice: nothing changes, and nothing is lost.
    experiment(place, base(), made("packed", NEAREST), made("twice", NEAREST, start="packed"))
    assert run(path).exit_code == 0
    assert commands == ["quantize", "add"]
    *others, twice = record_of(path)["rows"]
    assert others == again["rows"]
    assert twice["predictor"]["fingerprint"] == packed["predictor"]["fingerprint"]

    # Without one of them: its results would be lost.
    experiment(place, base(), made("other", NEAREST))
    refused = run(path)
    assert refused.exit_code == 1
    assert (
        "the record holds results of packed, which the experiment does not name" in refused.stderr
    )


def test_pruned_and_healed(place: Path, commands: list[str]) -> None:
    """Steps are shared, a run is gone on with, a time limit ends one."""
    steps = [f"prune --layers 1 {LOOK}", f"heal {{texts}}/text --steps 2 {TRAINING}"]
    limited = f"heal {{texts}}/text --steps 9 --time-limit 0.001 {TRAINING}"
    path = experiment(
        place, base(), made("healed", *steps), made("briefly", steps[0], limited),
        made("impossible", "prune --layers 9"),
    )  # fmt: skip
    found = run(path)
    assert found.exit_code == 1
    plain, healed, briefly, impossible = record_of(path)["rows"]
    assert commands == ["add", "prune", "heal", "add", "heal", "heal", "add", "prune"]
    assert impossible["failure"] == "prune: CommandError: 1 to 2 layers can be removed"
    assert "FAILED  t, impossible: prune: CommandError: 1 to 2 layers" in found.stdout

    facts = healed["predictor"]
    assert facts["layers"] == 2
    assert facts["parameters"] < plain["predictor"]["parameters"]
    assert [line.split(":")[0].split()[0] for line in facts["history"]] == [
        "weights", "pruned", "healed",
    ]  # fmt: skip
    (removed,) = facts["pruning"]["removed_layers"]
    distances = facts["pruning"]["angular_distances"]
    assert removed == distances.index(min(distances))
    assert facts["steps"][1]["inputs"] == {"text": hashlib.sha256(TEXT).hexdigest()}
    assert facts["steps"][1]["trained"]["steps"] == 2
    assert facts["steps"][1]["trained"]["tokens"] == 128
    assert len(facts["steps"][1]["trained"]["held_out_bpb"]) == 2
    # The same pruned weights; a step, and the end.
    assert briefly["predictor"]["steps"][0] == facts["steps"][0]
    assert briefly["predictor"]["steps"][1]["trained"]["steps"] == 1
    assert len(briefly["predictor"]["steps"][1]["usage"]) == 2
    left = {file.name for file in (place / "out" / "predictors.kept").glob("*/run/*")}
    assert left == {"settings.json", "log.json", "model"}
    assert (place / "out" / "predictors-tried-blocks.png").is_file()

    # A command that was cut off while it wrote its result is run again.
    (made_file,) = (
        file for file in (place / "out" / "predictors.kept").glob("*/made.json")
        if json.loads(file.read_text())["words"][0] == "prune"
    )  # fmt: skip
    made_file.unlink()
    (made_file.parent / "model" / "weights.safetensors").write_bytes(b"half")
    record = record_of(path)
    record["rows"] = record["rows"][:1]
    (place / "out" / "predictors-tried.json").write_text(json.dumps(record))
    commands.clear()
    assert run(path).exit_code == 1
    assert commands == ["prune", "add", "add", "prune"]
    assert [row["predictor"]["fingerprint"] for row in record_of(path)["rows"][1:3]] == [
        facts["fingerprint"], briefly["predictor"]["fingerprint"],
    ]  # fmt: skip


def test_the_record_of_another_experiment_is_left_alone(place: Path, commands: list[str]) -> None:
    path = experiment(place, base())
    (place / "out").mkdir()
    kept = place / "out" / "predictors-tried.json"
    kept.write_text('{"benchmark": "predictors", "experiment": {}}')
    assert "is the record of another experiment or model" in run(path).stderr
    kept.write_text('{"benchmark": "steering"}')
    assert "not a record of an experiment on predictors" in run(path, "--show").stderr


# --- tables -----------------------------------------------------------------------------------


def row(name: str, bpb: float, text: str = "t", *, seconds: float = 2.0, parameters: int = 10**8,
        distances: list[float] | None = None) -> dict[str, Any]:  # fmt: skip
    usage = {"wall_s": seconds, "cpu_s": 3.0, "peak_bytes": 300 << 20}
    return {
        "case": {"predictor": name, "text": text},
        "input": {"file": text, "bytes": 8000, "sha256": ""},
        "predictor": {
            "parameters": parameters, "layers": 30, "stored_bytes": 98_000_000,
            "package_bytes": 165_000_000, "bits_a_weight": 5.0,
            "pruning": distances and {"removed_layers": [1], "angular_distances": distances},
        },
        "verified": True,
        "compressed_bytes": round(1000 * bpb),
        "bpb": bpb,
        "compress": usage,
        "decompress": usage | {"peak_bytes": 400 << 20},
        "details": {"frames": {"predictor": 1}},
    }  # fmt: skip


def record(*rows: dict[str, Any], **described: dict[str, Any]) -> dict[str, Any]:
    names = dict.fromkeys(entry["case"]["predictor"] for entry in rows)
    plain = {"base": "default", "steps": ["x"], "against": next(iter(names), ""), "family": None}
    return {
        "title": "A title",
        "benchmark": "predictors",
        "experiment": {"llmzip": {"mixing": False}},
        "predictors": [{"name": name} | plain | described.get(name, {}) for name in names],
        "sessions": [{"hardware": {"cpu": "A processor", "cores": 2}, "date": "2026-11-22T"}],
        "rows": list(rows),
    }


FAMILY = {"steps": [], "family": "f"}
COMPLETE = record(
    row("whole", 1.0), row("half", 1.25, seconds=1.0, distances=[0.25, 0.125]),
    row("whole", 2.0, "u"), row("half", 2.0, "u", seconds=1.0),
)  # fmt: skip

TABLE = """\
t  8,000 bytes
predictor  M params  layers    MB  bits/w  comp s  dec s  peak MiB    bits   ratio     bpb  against    change  speed  effective
whole         100.0      30  98.0   5.000     2.0    2.0       400   8,000  0.1250  1.0000    whole   +0.00 %   1.00          -
half          100.0      30  98.0   5.000     1.0    1.0       400  10,000  0.1562  1.2500    whole  +25.00 %   2.00          -"""  # noqa: E501


def test_tables() -> None:
    shown = tables(COMPLETE).split("\n\n")
    assert shown[0] == TABLE
    assert shown[1].startswith("u  8,000 bytes")
    assert shown[2].startswith("MB: of what has to be kept")


def test_what_no_model_coded_is_marked() -> None:
    worse = row("worse", 2.5) | {"details": {"frames": {"zstd": 1}}}
    found = record(row("a", 1.5), worse)
    assert "2.500*" in excerpt(found)
    assert "\\* coded by zstd or stored" in excerpt(found)
    assert "2.5000*" in tables(found)
    assert "1.5000 " in tables(found)
    assert "*" not in excerpt(record(row("a", 1.5)))


def test_effective_sizes() -> None:
    found = record(
        row("small", 1.5, parameters=10**8), row("large", 1.0, parameters=4 * 10**8),
        row("pruned", 1.25, parameters=10**8), row("alone", 1.25),
        small=FAMILY, large=FAMILY, pruned={"family": "f"}, alone={"family": "g"},
    )  # fmt: skip
    lines = tables(found).splitlines()
    effective = {line.split()[0]: line.split()[-1] for line in lines[2:6]}
    assert effective == {"small": "100.0", "large": "400.0", "pruned": "200.0", "alone": "-"}


def test_the_line_of_a_family() -> None:
    assert effective_parameters({}, 1.0) is None
    assert effective_parameters({100: 1.0}, 1.0) is None
    assert effective_parameters({100: 1.0, 200: 1.0}, 1.0) is None
    assert effective_parameters({100: 1.0, 200: 0.5}, 0.0) == pytest.approx(400)
    # Least squares: the middle one lies as far off the line as both others together.
    three = {math.exp(1): 3.0, math.exp(2.6): 2.0, math.exp(3): 1.0}
    assert effective_parameters(three, 2.0) == pytest.approx(math.exp(2.2))


def test_tables_of_what_is_incomplete() -> None:
    assert tables(record()) == "nothing was measured yet"
    failed = {"case": {"predictor": "half", "text": "t"}, "verified": False, "failure": "dark"}
    shown = tables(record(failed, row("other", 1.0)))
    assert shown.splitlines()[2].split()[-3:] == ["-", "-", "-"]  # compared with the failed one
    assert shown.endswith("FAILED  t, half: dark")


def test_charts(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = draw(COMPLETE, tmp_path / "r.png")
    assert [path.name for path in drawn] == ["r-bytes.png", "r-speed.png", "r-blocks.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert draw(record(), tmp_path / "nothing.png") == []


def test_the_readme_gets_its_excerpt(tmp_path: Path) -> None:
    page, found = tmp_path / "README.md", tmp_path / "record.json"
    found.write_text(json.dumps(COMPLETE))
    page.write_text("Before\n<!-- predictors -->\nold\n<!-- /predictors -->\nAfter\n")
    readme.update_readme(page, [found])
    assert page.read_text() == f"Before\n<!-- predictors -->\n{excerpt(COMPLETE)}\n" + (
        "<!-- /predictors -->\nAfter\n"
    )
    assert excerpt(COMPLETE).splitlines()[2:] == [
        "| predictor | layers | MB | bits a weight | t | change | u | change | against | speed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| whole | 30 | 98 | 5.00 | 1.000 | +0.00 % | 2.000 | +0.00 % | whole | 1.00 |",
        "| half | 30 | 98 | 5.00 | 1.250 | +25.00 % | 2.000 | +0.00 % | whole | 2.00 |",
    ]
    assert "without context models" in excerpt(COMPLETE)
    assert "A processor, 2 cores, 2026-11-22" in excerpt(COMPLETE)


def test_the_excerpt_of_what_is_incomplete() -> None:
    failed = {"case": {"predictor": "half", "text": "t"}, "verified": False, "failure": "dark"}
    found = record(row("whole", 1.0), failed, row("half", 2.0, "u"))
    assert excerpt(found).splitlines()[4:] == [
        "| whole | 30 | 98 | 5.00 | 1.000 | +0.00 % | - | - | whole | 1.00 |",
        "| half | 30 | 98 | 5.00 | - | - | 2.000 | - | whole | - |",
    ]


NO_RECORD = "no record of files, speed, predictors, mixer, steering, sweep"


@pytest.mark.parametrize(
    ("content", "page", "message"),
    [
        ('{"benchmark": "predictors"}', "", "README.md lacks <!-- predictors -->"),
        ('{"benchmark": "files"}', "<!-- results -->", "README.md lacks <!-- results -->"),
        ('{"benchmark": "theory"}', "", NO_RECORD),
        ("{", "", NO_RECORD),
    ],
)
def test_what_no_excerpt_is_made_of(tmp_path: Path, content: str, page: str, message: str) -> None:
    (tmp_path / "README.md").write_text(page)
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(readme.ReadmeError, match=message):
        readme.update_readme(tmp_path / "README.md", [tmp_path / "record.json"])


def test_the_readme_has_places_for_all_tables() -> None:
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for mark in ("results", "speed", "predictors", "mixer", "sweep"):
        assert page.index(f"<!-- {mark} -->") < page.index(f"<!-- /{mark} -->")

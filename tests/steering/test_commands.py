"""Steering in the command line, and what options are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cli
from archiver.commands.arguments import Duration
from archiver.errors import SteeringError, UsageError
from archiver.options import CompressOptions, SteeringChoice, SteeringMode
from archiver.predict.package import ModelPackage
from tests.golden.make import line_of

CHOICES = {
    "auto": SteeringChoice(mode=SteeringMode.AUTO),
    "auto:90s": SteeringChoice(mode=SteeringMode.AUTO, training_s=90),
    "auto:1.5h": SteeringChoice(mode=SteeringMode.AUTO, training_s=5400),
    "none": SteeringChoice(mode=SteeringMode.NONE),
    "prose": SteeringChoice(mode=SteeringMode.NAMED, text="prose"),
    "fixed:a: b.c": SteeringChoice(mode=SteeringMode.FIXED, text="a: b.c"),
    "random:256": SteeringChoice(mode=SteeringMode.RANDOM, vectors=256),
    "random:1:18446744073709551615": SteeringChoice(
        mode=SteeringMode.RANDOM, vectors=1, seed=2**64 - 1
    ),
    "trained:8": SteeringChoice(mode=SteeringMode.TRAINED, vectors=8, training_s=900),
    "trained:32:2m": SteeringChoice(mode=SteeringMode.TRAINED, vectors=32, training_s=120),
    "trained:8:300steps": SteeringChoice(mode=SteeringMode.TRAINED, vectors=8, training_steps=300),
    "x/none.steer": SteeringChoice(mode=SteeringMode.FILE, text="x/none.steer"),
}


@pytest.mark.parametrize("text", CHOICES)
def test_choices_of_steering(text: str) -> None:
    assert CompressOptions(steering=text).steering_choice == CHOICES[text]


@pytest.mark.parametrize(
    "text",
    [
        "", "auto:", "auto:15", "auto:0m", "none:1", "fixed:", "random:", "random:0", "random:257",
        "random:1:18446744073709551616", "random:-1", "trained:0", "trained:33", "trained:8:",
        "trained:8:soon", "trained:8:0steps", "trained:8:steps", "trained:8:100001steps",
        "prose:8",
    ],
)  # fmt: skip
def test_choices_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match=r"does not say which steering|must be \d+ to \d+, not"):
        CompressOptions(steering=text)


def test_only_files_are_embedded() -> None:
    assert CompressOptions(steering="x.steer", embed_steering=True).embed_steering
    with pytest.raises(UsageError, match="only a steering file can be embedded"):
        CompressOptions(steering="auto", embed_steering=True)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.commands, [str(argument) for argument in arguments])


def test_a_steering_file_from_training_to_decompression(tiny: ModelPackage, tmp_path: Path) -> None:
    corpus, text, steer = (tmp_path / name for name in ("corpus", "text", "my.steer"))
    corpus.write_bytes(line_of(60_000, 3))
    text.write_bytes(line_of(500, 4))
    made = run(
        "train", corpus, "-o", steer, "-m", "tiny", "-k", 2, "--steps", 8, "--seed", 5,
        "--checkpoint", tmp_path / "state", "--prior", "lloyd-max", "--bins", 15,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "% fewer of the model's bits in held-out windows; " in made.stderr
    assert " bytes of vectors, square error " in made.stderr
    assert (tmp_path / "state").exists()
    again = run("train", corpus, "-o", steer, "-m", "tiny", "--time-limit", "1s")
    assert again.exit_code == 4
    assert "exists already" in again.stderr

    archive = Path(f"{text}.llmz")
    assert run("compress", "-m", "tiny", "--steer", steer, text).exit_code == 0
    assert run("test", archive).exit_code == SteeringError.exit_code == 14
    assert run("test", "--steer", steer, archive).exit_code == 0
    text.rename(tmp_path / "original")
    assert run("decompress", "--steer", steer, archive).exit_code == 0
    assert text.read_bytes() == (tmp_path / "original").read_bytes()
    line = next(line for line in run("info", archive).stdout.splitlines() if "  steering" in line)
    assert line.startswith("  steering  file ")
    assert line.endswith(", 9 bytes of side information")

    assert run("compress", "-f", "-m", "tiny", "--steer", steer, "--embed", text).exit_code == 0
    assert run("test", archive).exit_code == 0
    shown = run("info", archive).stdout
    assert "  steering  embedded, 2 vectors, prior lloyd-max, " in shown
    assert " bits a coordinate, " in shown
    fields: dict[str, Any] = json.loads(run("info", "--json", archive).stdout)["steering"]
    assert (fields["kind"], fields["vectors"]) == ("embedded", 2)


def test_wrong_use(tiny: ModelPackage, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(line_of(300, 1))
    wrong = run("compress", "-m", "tiny", "--steer", "random:0", text)
    assert wrong.exit_code == UsageError.exit_code
    assert "number of random vectors must be 1 to 256" in wrong.stderr
    unknown = run("compress", "-m", "tiny", "--steer", "poetry", text)
    assert unknown.exit_code == UsageError.exit_code
    assert "no built-in steering vectors 'poetry'" in unknown.stderr
    missing = run("compress", "-m", "tiny", "--steer", tmp_path / "no.steer", text)
    assert missing.exit_code == SteeringError.exit_code
    short = run("train", "-m", "tiny", text, "-o", tmp_path / "x.steer")
    assert short.exit_code == UsageError.exit_code
    assert "training needs texts of 6,144 tokens and more" in short.stderr
    assert not (tmp_path / "x.steer").exists()
    assert "must end in .steer" in run("train", text, "-o", tmp_path / "x").stderr
    assert "is not a time" in run("train", text, "-o", "x.steer", "--time-limit", "15").stderr


def test_times() -> None:
    assert Duration().convert("90s", None, None) == 90
    assert Duration().convert("1.5h", None, None) == 5400
    assert Duration().convert(900.0, None, None) == 900

"""Predictors are made here: by the commands of `llmzip model`, each in a fresh process.

    kept folder:  home/          packages: an LLMZIP_HOME of its own, so that the user's is left as
                                 it is; its downloads are the user's
                  <key>/         what one step made of a model
                      model/     weights (run/model/ where the step trains)
                      made.json  the step, the texts that it read, what it took; written last

A key is a digest of the base's package and of all steps so far with the texts that they read, so
experiments and predictors share what begins alike. It says nothing of the workshop's own code:
after a change of that, remove the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.environment import REPOSITORY, git_state
from benchmarks.experiment_file import ExperimentError
from benchmarks.inputs import sha256_of
from benchmarks.predictors.experiment import Predictor
from benchmarks.predictors.facts import package_sizes, packed_sizes, pruning_of
from benchmarks.predictors.steps import Step
from benchmarks.records import write_json
from benchmarks.runner import JobError, JobReport, run_job

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage

_MADE_FILE = "made.json"
_KEY_DIGITS = 16
# What a run needs to go on, and nobody needs once it has ended.
_LEFTOVERS = ("checkpoint-*.safetensors", "corpus.safetensors", "written.safetensors")

Tell = Callable[[str], None]


class CommandError(Exception):
    """A command of llmzip ended with an error; the message is what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A predictor that is ready to compress with.

    Attributes:
        model: the name of its package.
        facts: what is known of it, in types that JSON has.
    """

    model: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """Where predictors are made.

    Attributes:
        kept: the folder for what is made; folder: one for jobs.
        places: what stands for `{here}` and `{texts}`.
        threads: of commands that take them; None for their default.
    """

    kept: Path
    folder: Path
    places: Mapping[str, Path]
    threads: int | None

    @contextmanager
    def own_home(self) -> Iterator[None]:
        """Within, the packages of the kept folder are those of llmzip."""
        from archiver.predict import home

        downloads = home.downloads_folder()
        downloads.mkdir(parents=True, exist_ok=True)
        own = self.kept.resolve() / "home"
        own.mkdir(parents=True, exist_ok=True)
        link = own / "downloads"
        link.unlink(missing_ok=True)
        link.symlink_to(downloads, target_is_directory=True)
        before = os.environ.get("LLMZIP_HOME")
        os.environ["LLMZIP_HOME"] = str(own)
        try:
            yield
        finally:
            del os.environ["LLMZIP_HOME"]
            if before is not None:
                os.environ["LLMZIP_HOME"] = before

    def case(self, predictor: Predictor) -> dict[str, Any]:
        """Return all that decides what a predictor is, in types that JSON has.

        Raises:
            ExperimentError: its base, or a text that a step reads, cannot be had.
        """
        try:
            package = self.base_package(predictor.base)
            inputs = [step.placed(self.places).inputs() for step in predictor.steps]
        except (ExperimentError, JobError) as error:
            raise ExperimentError(f"predictor {predictor.name}: {error}") from error
        return {
            "predictor": predictor.name,
            "base": predictor.base,
            "base_fingerprint": package.fingerprint,
            "steps": [
                {"words": list(step.words), "inputs": read}
                for step, read in zip(predictor.steps, inputs, strict=True)
            ],
        }

    def make(self, predictor: Predictor, case: Mapping[str, Any], tell: Tell) -> Made:
        """Carry out the steps that have not been, and make a package of the result.

        Args:
            case: the predictor's.

        Raises:
            JobError: a step failed.
        """
        base = model = self._model_of(predictor.base)
        key, made, pruning = case["base_fingerprint"], [], None
        for step, stored in zip(predictor.steps, case["steps"], strict=True):
            key = _digest([key, stored["words"], sorted(stored["inputs"].values())])
            try:
                model = self._carry_out(step, stored, key, model, base, tell)
            except JobError as error:
                raise JobError(f"{step.command}: {error}") from error
            made.append(json.loads((self.kept / key / _MADE_FILE).read_text(encoding="utf-8")))
            pruning = pruning_of(Path(model)) or pruning
        if predictor.steps:
            tell("making a package")
            self._llmzip("add", model, "--name", key, "-q")
            package = _resolve(key)
        else:
            package = self.base_package(predictor.base)
        facts = {
            "fingerprint": package.fingerprint,
            **run_job(
                "benchmarks.predictors.facts:describe_weights", {"model": model}, self.folder
            ).value,
            "package_bytes": package.array_bytes,
            **(packed_sizes(Path(model)) or package_sizes(package)),
            "steps": made,
            "pruning": pruning,
        }
        return Made(model=package.fingerprint, facts=facts)

    def put_away(self, predictor: Predictor, made: Made) -> None:
        """Remove a predictor's package, where it is not a base; its weights stay."""
        from archiver.predict import registry

        if made.model != self.base_package(predictor.base).fingerprint:
            registry.remove(made.model)

    def base_package(self, base: str) -> ModelPackage:
        """Return the package of a base, made where it is not there.

        Raises:
            ExperimentError, JobError, ModelError: it cannot be made.
        """
        from archiver.predict import registry
        from archiver.predict.names import read_names

        if is_known(base):
            if registry.show(base).package is None:
                self._llmzip("pull", base, "-q")
            return _resolve(base)
        path = Path(self._model_of(base))
        if not path.exists():
            raise ExperimentError(f"{base}: neither a file or folder, nor a model llmzip knows")
        name = f"base-{_digest(_contents(path))}"
        if name not in read_names():
            self._llmzip("add", str(path), "--name", name, "-q")
        return _resolve(name)

    def _carry_out(
        self, step: Step, stored: Mapping[str, Any], key: str, model: str, teacher: str, tell: Tell
    ) -> str:
        """Return the folder of weights that a step makes of a model, or made before."""
        folder = self.kept.resolve() / key
        result = folder / "run" / "model" if step.trains else folder / "model"
        if (folder / _MADE_FILE).is_file():
            return str(result)
        tell(" ".join(step.words))
        # What a process that was cut off left behind is not a result.
        shutil.rmtree(result, ignore_errors=True)
        result.parent.mkdir(parents=True, exist_ok=True)
        placed = step.placed(self.places)
        words = placed.command_line(model, teacher, folder / "run" if step.trains else result)
        reports = [self._llmzip(*words, *left) for left in _calls(placed, folder / "run", result)]
        record: dict[str, Any] = {
            **stored,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "git": git_state(REPOSITORY),
            "threads": self.threads,
            "usage": [dataclasses.asdict(report.usage) for report in reports],
        }
        if step.trains:
            log = _log(folder / "run")
            record["trained"] = {
                "steps": max((entry["step"] for entry in log), default=0),
                "tokens": sum(entry.get("tokens", 0) for entry in log),
                "seconds": _seconds(log),
                "held_out_bpb": [e["held_out_bpb"] for e in log if "held_out_bpb" in e],
            }
            for pattern in _LEFTOVERS:
                for path in (folder / "run").glob(pattern):
                    path.unlink()
        write_json(folder / _MADE_FILE, record)
        return str(result)

    def _llmzip(self, command: str, *words: str) -> JobReport:
        """Run a command of `llmzip model`."""
        threads = [] if self.threads is None else ["-T", str(self.threads)]
        if command in ("add", "pull"):
            threads = []
        arguments = {"words": [command, *words, *threads]}
        return run_job(f"{__name__}:run_command", arguments, self.folder)

    def _model_of(self, base: str) -> str:
        """Return a base as commands take it."""
        (word,) = Step(words=(base,)).placed(self.places).words
        return word


def _calls(step: Step, run: Path, result: Path) -> Iterator[list[str]]:
    """What to add to a step's command line, call by call, until its result is there."""
    limit_s = step.options()["time_limit"] if step.trains else None
    if limit_s is None:
        yield []
        return
    left_s = limit_s - _seconds(_log(run))
    if left_s > 0:
        yield ["--time-limit", str(left_s)]
    if not result.exists():
        yield ["--finish"]


def _log(run: Path) -> list[dict[str, Any]]:
    """Return the log of a run, empty where it has not begun."""
    path = run / "log.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """Return how long a run has trained."""
    return float(sum(entry.get("seconds", 0.0) for entry in log))


def is_known(base: str) -> bool:
    """Return whether a base is a model that llmzip knows by name."""
    from archiver.predict.known import KNOWN_MODELS

    return any(base in (known.name, *known.aliases) for known in KNOWN_MODELS)


def _resolve(name: str) -> ModelPackage:
    from archiver.predict import registry

    return registry.resolve(name)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_KEY_DIGITS]


def _contents(path: Path) -> list[tuple[str, str]]:
    """Return names and hashes of a file, or of all files of a folder."""
    if path.is_file():
        return [(path.name, sha256_of(path))]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [(file.relative_to(path).as_posix(), sha256_of(file)) for file in files]


def run_command(words: list[str]) -> None:
    """Run a command of `llmzip model`; called in the fresh process.

    Raises:
        CommandError: it ended with an error.
    """
    import cli

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            code = cli.commands.main(["model", *words], prog_name="llmzip", standalone_mode=False)
    except click.ClickException as error:
        raise CommandError(error.format_message()) from error
    if code:
        lines = said.getvalue().strip().splitlines()
        raise CommandError(lines[-1].removeprefix("llmzip: model: ") if lines else f"exit {code}")

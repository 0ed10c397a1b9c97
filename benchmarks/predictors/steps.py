"""A step: a command of `llmzip model` without the models that go in and what comes out.

prune --layers 4 --by bits              llmzip model prune BASE --layers 4 --by bits -o FOLDER
heal {here}/text.toml --rank 16 ...     llmzip model heal STUDENT TEACHER {here}/text.toml ...
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from archiver.commands.workshop import localize, prune, quantize
from archiver.commands.workshop_training import heal, tune
from benchmarks.experiment_file import ExperimentError
from benchmarks.inputs import sha256_of

_COMMANDS: Mapping[str, click.Command] = {
    "prune": prune, "localize": localize, "quantize": quantize, "heal": heal, "tune": tune,
}  # fmt: skip
_TRAINING = ("heal", "tune")
# What the benchmark itself decides.
_OWN_OPTIONS = {"output": "-o", "run_folder": "--run", "name": "--name", "threads": "-T",
                "finish": "--finish"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command, its words as the experiment has them: places as `{here}` and `{texts}`.

    Attributes:
        words: the command's name and its options, the texts that it reads among them.
    """

    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Step:
        """Return the step that an experiment file names.

        Raises:
            ExperimentError: there is no such command or option, or the experiment cannot choose it.
        """
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise ExperimentError(f"step {text!r}: {error}") from error
        if not words or words[0] not in _COMMANDS:
            raise ExperimentError(f"step {text!r}: the commands are {', '.join(_COMMANDS)}")
        step = cls(words=words)
        try:
            options = step.options()
        except click.ClickException as error:
            raise ExperimentError(f"step {text!r}: {error.format_message()}") from error
        for name, shown in _OWN_OPTIONS.items():
            if options.get(name) not in (None, False, Path("OUT")):
                raise ExperimentError(f"step {text!r}: {shown} is not the experiment's to choose")
        if step.command == "tune" and options["rank"]:
            raise ExperimentError(f"step {text!r}: tune makes weights with --rank 0 only")
        return step

    @property
    def command(self) -> str:
        """The command's name."""
        return self.words[0]

    @property
    def trains(self) -> bool:
        """Whether it works in a run folder, and goes on there when it was cut off."""
        return self.command in _TRAINING

    def options(self) -> dict[str, Any]:
        """Return what the command line says, by the names of the command's parameters."""
        models = ["MODEL", "TEACHER"] if self.command == "heal" else ["MODEL"]
        target = "--run" if self.trains else "-o"
        context = _COMMANDS[self.command].make_context(
            self.command, [*models, target, "OUT", *self.words[1:]]
        )
        return dict(context.params)

    def placed(self, places: Mapping[str, Path]) -> Step:
        """Return the step with the folders for which the words in braces stand."""
        words = []
        for word in self.words:
            for name, folder in places.items():
                word = word.replace(f"{{{name}}}", str(folder))
            words.append(word)
        return Step(words=tuple(words))

    def inputs(self) -> dict[str, str]:
        """Return the SHA-256 of each text that the command reads, of a step with its folders.

        Raises:
            ExperimentError: one is not there.
        """
        options = self.options()
        given = options.get("calibrate") or ()
        paths = [*(given if isinstance(given, tuple) else (given,))]
        if "text" in options:
            paths.append(options["text"])
        found = {}
        for path in paths:
            try:
                found[path.name] = sha256_of(path)
            except OSError as error:
                raise ExperimentError(f"{path}: {error.strerror}") from error
        return found

    def command_line(self, model: str, teacher: str, target: Path) -> list[str]:
        """Return the words after `llmzip model`, of a step with its folders."""
        models = [model, teacher] if self.command == "heal" else [model]
        return [self.command, *models, *self.words[1:], "--run" if self.trains else "-o",
                str(target)]  # fmt: skip

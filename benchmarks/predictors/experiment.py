"""An experiment file: texts and settings of llmzip (`experiment_file`), and predictors.

title = "..."

[[text]]
name = "enwik6"
paths = ["corpora/enwik/enwik6"]
sha256 = "..."

[[predictor]]
name = "int8"                     # with no steps: the base as it is
base = "default"                  # a model that llmzip knows, a GGUF file or a folder; "default"
                                  # where it is left out
family = "smollm2"                # unpruned members give effective sizes; may be left out

[[predictor]]
name = "minus-4-healed"
base = "minus-4"                  # or an earlier predictor, whose steps come first
steps = ["heal {here}/healing.toml --root training={texts}/training --steps 200 --rank 16"]
against = "minus-4"               # what it is compared with; the first one where it is left out

In bases and steps, `{here}` is the experiment file's folder, `{texts}` that of the texts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.errors import UsageError
from archiver.options import DEFAULT_MODEL
from archiver.predict.names import checked_name
from benchmarks.experiment_file import (
    CommonPart,
    ExperimentError,
    check_keys,
    check_own,
    common_part,
    named_records,
    read_table,
)
from benchmarks.predictors.steps import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A predictor as the file has it."""

    name: str
    base: str = DEFAULT_MODEL
    steps: tuple[str, ...] = ()
    against: str | None = None
    family: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A model, and what is done to it.

    Attributes:
        name: in tables.
        base: the published model that it starts from.
        steps: from there, in order.
        against: the predictor that it is compared with.
        family: members without steps tell what a size is worth; None for none.
    """

    name: str
    base: str
    steps: tuple[Step, ...]
    against: str
    family: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return it in types that JSON has."""
        return dataclasses.asdict(self) | {"steps": [" ".join(step.words) for step in self.steps]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What an experiment file says.

    Attributes:
        here: the file's folder.
    """

    common: CommonPart
    here: Path
    predictors: tuple[Predictor, ...]


def read_experiment(path: Path) -> Experiment:
    """Return the experiment in a TOML file.

    Raises:
        ExperimentError: it cannot be read, or is none.
    """
    table = read_table(path)
    try:
        check_keys(table, ("title", "text", "predictor"), ("llmzip",))
        common = common_part(path, table)
        check_own(common.llmzip)
        return Experiment(
            common=common,
            here=path.resolve().parent,
            predictors=_predictors(named_records(_Entry, "predictor", table["predictor"])),
        )
    except (ExperimentError, UsageError) as error:
        raise ExperimentError(f"{path}: {error}") from error


def _predictors(entries: tuple[_Entry, ...]) -> tuple[Predictor, ...]:
    names = {entry.name for entry in entries}
    found: dict[str, Predictor] = {}
    for entry in entries:
        checked_name(entry.name)
        against = entry.against or entries[0].name
        if against not in names:
            raise ExperimentError(f"{entry.name} is compared with {against!r}, which is not there")
        try:
            steps = tuple(Step.parse(text) for text in entry.steps)
        except ExperimentError as error:
            raise ExperimentError(f"predictor {entry.name}: {error}") from error
        if entry.base in names and entry.base not in found:
            raise ExperimentError(f"{entry.name} starts from {entry.base!r}, which comes later")
        before = found.get(entry.base)
        found[entry.name] = Predictor(
            name=entry.name,
            base=entry.base if before is None else before.base,
            steps=steps if before is None else (*before.steps, *steps),
            against=against,
            family=entry.family,
        )
    return tuple(found.values())

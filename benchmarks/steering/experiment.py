"""An experiment file: texts, settings of llmzip, and the plan of one kind.

title = "..."
kind = "kinds"                  # one of `plans.PLANS`; the table of that name is its plan

[[text]]
name = "enwik6"
paths = ["corpora/enwik/enwik6"]   # in the folder of texts; joined
sha256 = "..."                     # of all that is read
limit_bytes = 50000                # only the beginning; may be left out

[llmzip]                        # settings of every archive; may be left out
chunk_tokens = 512

[kinds]
steering = ["none", "trained:8:300steps"]
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar

from archiver.errors import UsageError
from benchmarks.inputs import read_input
from benchmarks.records import InputFile, LlmzipSettings
from benchmarks.steering.plans import PLANS, Plan, Span

_Record = TypeVar("_Record")
_TOP_KEYS = ("title", "kind", "text", "llmzip")


class ExperimentError(Exception):
    """The experiment cannot be run; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text of an experiment, as the module's text describes it."""

    name: str
    paths: tuple[str, ...]
    sha256: str
    limit_bytes: int | None = None

    def read(self, folder: Path) -> bytes:
        """Return its bytes.

        Raises:
            ExperimentError: it is not there, too short, or another text.
        """
        try:
            content = b"".join((folder / path).read_bytes() for path in self.paths)
        except OSError as error:
            raise ExperimentError(
                f"text {self.name}: {error.filename}: {error.strerror}"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise ExperimentError(f"text {self.name}: its SHA-256 is {found}")
        if self.limit_bytes is not None and not 0 < self.limit_bytes <= len(content):
            raise ExperimentError(
                f"text {self.name} has {len(content):,} bytes, not {self.limit_bytes}"
            )
        return content[: self.limit_bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What an experiment file says.

    Attributes:
        name: of the file, without its suffix; records are called by it.
        llmzip: settings of every archive, where a case does not have its own.
    """

    name: str
    title: str
    texts: tuple[Text, ...]
    llmzip: LlmzipSettings
    plan: Plan

    def as_dict(self) -> dict[str, Any]:
        """Return all that decides the results, in types that JSON has."""
        return {
            "name": self.name,
            "kind": self.plan.kind,
            "texts": [dataclasses.asdict(text) for text in self.texts],
            "llmzip": dataclasses.asdict(self.llmzip),
            "plan": dataclasses.asdict(self.plan),  # type: ignore[call-overload]
        }


def read_experiment(path: Path) -> Experiment:
    """Return the experiment in a TOML file.

    Raises:
        ExperimentError: it cannot be read, or is none.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: not TOML: {error}") from error
    try:
        return _experiment(path.stem, table)
    except (ExperimentError, UsageError, ValueError) as error:
        raise ExperimentError(f"{path}: {error}") from error


def _experiment(name: str, table: dict[str, Any]) -> Experiment:
    kind: Any = table.get("kind")
    if kind not in PLANS:
        raise ExperimentError(f"kind {kind!r}; there are {', '.join(PLANS)}")
    for key in table:
        if key not in (*_TOP_KEYS, kind):
            raise ExperimentError(f"unknown key {key!r}")
    for needed in ("title", "text", kind):
        if needed not in table:
            raise ExperimentError(f"{needed} is missing")
    if not isinstance(table["text"], list) or not table["text"]:
        raise ExperimentError("no texts")
    texts = tuple(_of_table(Text, "text", entry) for entry in table["text"])
    if len({text.name for text in texts}) < len(texts):
        raise ExperimentError("two texts have the same name")
    return Experiment(
        name=name,
        title=str(table["title"]),
        texts=texts,
        llmzip=_of_table(LlmzipSettings, "llmzip", table.get("llmzip", {})),
        plan=_of_table(PLANS[kind], kind, table[kind]),
    )


def _of_table(record: type[_Record], where: str, table: Any) -> _Record:
    """Return a record with the values of a table; every key and type must fit."""
    if not isinstance(table, dict):
        raise ExperimentError(f"{where} is not a table")
    hints = typing.get_type_hints(record)
    fields = {field.name: field for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            raise ExperimentError(f"unknown key {key!r} in {where}")
        if not _fits(value, hints[key]):
            raise ExperimentError(f"{key} in {where} cannot be {value!r}")
        values[key] = tuple(value) if isinstance(value, list) else value
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise ExperimentError(f"{name} is missing in {where}")
    return record(**values)


def _fits(value: object, hint: Any) -> bool:
    """Return whether a TOML value is of a type: str, int, bool, one of them or None, a tuple."""
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint) if part is not NoneType)
    if typing.get_origin(hint) is tuple:
        part = typing.get_args(hint)[0]
        return isinstance(value, list) and all(_fits(each, part) for each in value)
    return type(value) is hint


class Texts:
    """The experiment's texts, and files of parts of them."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        """Raises: ExperimentError: a text is not there, or another one."""
        self._contents = {text.name: text.read(folder) for text in experiment.texts}
        self._numbers = itertools.count()

    def content_bytes(self, name: str) -> int:
        """Return how long a text is."""
        return len(self._contents[name])

    def file(self, span: Span, folder: Path) -> InputFile:
        """Return a file in `folder` that holds a part of a text."""
        path = folder / f"input-{next(self._numbers)}"
        path.write_bytes(self._contents[span.text][span.begin : span.end])
        return read_input(path, span.name)

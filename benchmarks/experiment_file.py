"""What experiment files have in common: texts, settings of llmzip, tables that are read strictly.

[[text]]
name = "enwik6"
paths = ["corpora/enwik/enwik6"]   # in the folder of texts; joined
sha256 = "..."                     # of all that is read
begin = 475000                     # only from this byte on; may be left out
limit_bytes = 50000                # only so many bytes; may be left out

[llmzip]                           # settings of every archive; may be left out
chunk_tokens = 512
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar

from benchmarks.inputs import read_input
from benchmarks.records import InputFile, LlmzipSettings

_Record = TypeVar("_Record")


class ExperimentError(Exception):
    """The experiment cannot be run; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text of an experiment, as the module's text describes it."""

    name: str
    paths: tuple[str, ...]
    sha256: str
    begin: int = 0
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
        wanted = self.limit_bytes
        if not 0 <= self.begin < max(len(content), 1):
            raise ExperimentError(
                f"text {self.name} has {len(content):,} bytes: none from {self.begin} on"
            )
        if wanted is not None and not 0 < wanted <= len(content) - self.begin:
            raise ExperimentError(
                f"text {self.name} has {len(content):,} bytes: not {wanted} from {self.begin} on"
            )
        return content[self.begin : None if wanted is None else self.begin + wanted]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonPart:
    """What every experiment has.

    Attributes:
        name: of the file, without its suffix; records are called by it.
        llmzip: settings of every archive, where an archive does not have its own.
    """

    name: str
    title: str
    texts: tuple[Text, ...]
    llmzip: LlmzipSettings

    def as_dict(self) -> dict[str, Any]:
        """Return what decides the results, in types that JSON has."""
        return {
            "name": self.name,
            "texts": [dataclasses.asdict(text) for text in self.texts],
            "llmzip": dataclasses.asdict(self.llmzip),
        }


class Texts:
    """The texts of an experiment, and files of parts of them."""

    def __init__(self, texts: Sequence[Text], folder: Path) -> None:
        """Raises: ExperimentError: a text is not there, or another one."""
        self._contents = {text.name: text.read(folder) for text in texts}
        self._numbers = itertools.count()

    def content(self, name: str) -> bytes:
        """Return a text."""
        return self._contents[name]

    def file(self, content: bytes, name: str, folder: Path) -> InputFile:
        """Return a new file in `folder` with that content, which records call `name`."""
        path = folder / f"input-{next(self._numbers)}"
        path.write_bytes(content)
        return read_input(path, name)


def read_table(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises:
        ExperimentError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: not TOML: {error}") from error


def check_keys(table: Mapping[str, Any], needed: Sequence[str], others: Sequence[str]) -> None:
    """Return where a table has the keys it needs, and no unknown ones.

    Raises:
        ExperimentError: it has not.
    """
    for key in table:
        if key not in (*needed, *others):
            raise ExperimentError(f"unknown key {key!r}")
    for key in needed:
        if key not in table:
            raise ExperimentError(f"{key} is missing")


def common_part(path: Path, table: Mapping[str, Any]) -> CommonPart:
    """Return the common part of the experiment in a file.

    Raises:
        ExperimentError: it is malformed.
    """
    return CommonPart(
        name=path.stem,
        title=str(table["title"]),
        texts=named_records(Text, "text", table["text"]),
        llmzip=of_table(LlmzipSettings, "llmzip", table.get("llmzip", {})),
    )


def check_own(settings: LlmzipSettings) -> None:
    """Return when settings are an experiment's to choose.

    Raises:
        ExperimentError: they are those of a run.
    """
    for name in ("model", "threads"):
        if getattr(settings, name) is not None:
            raise ExperimentError(f"{name} in llmzip is not the experiment's to choose")


def named_records(record: type[_Record], what: str, entries: Any) -> tuple[_Record, ...]:
    """Return the records of an array of tables, each with a name of its own.

    Raises:
        ExperimentError: there is none, one is malformed, or two have the same name.
    """
    several = what if what.endswith("s") else f"{what}s"
    if not isinstance(entries, list) or not entries:
        raise ExperimentError(f"no {several}")
    found = tuple(of_table(record, what, entry) for entry in entries)
    names = [entry["name"] for entry in entries]
    if len(set(names)) < len(names):
        raise ExperimentError(f"two {several} have the same name")
    return found


def of_table(record: type[_Record], where: str, table: Any) -> _Record:
    """Return a record with the values of a table; every key and type must fit.

    Raises:
        ExperimentError: they do not.
    """
    if not isinstance(table, dict):
        raise ExperimentError(f"{where} is not a table")
    hints = typing.get_type_hints(record)
    fields = {field.name: field for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            raise ExperimentError(f"unknown key {key!r} in {where}")
        if dataclasses.is_dataclass(hints[key]):
            values[key] = of_table(hints[key], f"{key} in {where}", value)
            continue
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

"""An experiment file: texts and settings of llmzip (`experiment_file`), and series of values.

title = "..."

[[text]]
name = "enwik6"
paths = ["corpora/enwik/enwik6"]
sha256 = "..."

[[series]]
name = "windows"                     # also the end of its chart's name
axis = "window_tokens"               # one of AXES
values = [512, 1024, 2048]
texts = ["enwik6"]
limit_bytes = 100000                 # only the beginning of each text; may be left out
llmzip = { chunk_tokens = 16384 }    # settings of the series' own; may be left out

An archive that two series ask for is made once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from archiver.errors import UsageError
from archiver.levels import DEFAULT_LEVEL, LEVELS
from archiver.options import DEFAULT_FRAME_BYTES, LARGEST_STREAMS
from benchmarks.competitors import options_of
from benchmarks.experiment_file import (
    CommonPart,
    ExperimentError,
    check_keys,
    check_own,
    common_part,
    named_records,
    read_table,
)
from benchmarks.records import LlmzipSettings

BYTES, STREAMS, BUSY = "bytes", "streams", "busy_cores"
AXES: Mapping[str, str] = MappingProxyType(
    {
        BYTES: "bytes of the text",
        "level": "level",
        "window_tokens": "window, tokens",
        STREAMS: "streams a frame",
        "threads": "threads",
        BUSY: "cores that others keep busy",
    }
)
"""What a series may go along, and what tables and charts call it."""
_NOT_OPTIONS = (BYTES, STREAMS, BUSY)  # of llmzip

_NONE_CHOSEN = LlmzipSettings()
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Archives of each text that differ by one setting.

    Attributes:
        name: of small letters, digits and hyphens.
        axis: that setting; BYTES for growing beginnings of the texts.
        values: of it, all different.
        texts: names of texts.
        limit_bytes: how much of each text, for other axes than BYTES; None for all of it.
        llmzip: settings that go before the experiment's.
    """

    name: str
    axis: str
    values: tuple[int, ...]
    texts: tuple[str, ...]
    limit_bytes: int | None = None
    llmzip: LlmzipSettings = _NONE_CHOSEN

    def points(self, common: LlmzipSettings, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
        """Return what is to be measured, in types that JSON has.

        Args:
            common: settings of the experiment; sizes: of its texts in bytes, by name.

        Returns:
            "text", "value" and "case" of each.

        Raises:
            ExperimentError: a text is too short, or has more than one frame to cut into streams.
        """
        found = []
        for text in self.texts:
            for value in self.values:
                case = self._case(common, text, value, sizes[text])
                if case["bytes"] > sizes[text]:
                    raise ExperimentError(
                        f"series {self.name}: {text} has {sizes[text]:,} bytes, not"
                        f" {case['bytes']:,}"
                    )
                frame_bytes = self._merged(common).frame_bytes or DEFAULT_FRAME_BYTES
                if self.axis == STREAMS and case["bytes"] > frame_bytes:
                    raise ExperimentError(
                        f"series {self.name}: {case['bytes']:,} bytes of {text} are more than a"
                        f" frame of {frame_bytes:,}"
                    )
                found.append({"text": text, "value": value, "case": case})
        return found

    def check(self, common: LlmzipSettings, texts: Mapping[str, object]) -> None:
        """Return when the series can be run with these settings and texts.

        Raises:
            ExperimentError, UsageError: it cannot.
        """
        if not _NAME.fullmatch(self.name):
            raise ExperimentError("the name may have small letters, digits and hyphens only")
        if self.axis not in AXES:
            raise ExperimentError(f"no axis {self.axis!r}; there are {', '.join(AXES)}")
        if not self.values or len(set(self.values)) < len(self.values):
            raise ExperimentError("the values must be there, each once")
        if not self.texts:
            raise ExperimentError("no texts")
        for text in self.texts:
            if text not in texts:
                raise ExperimentError(f"no text {text!r}")
        if self.axis == BYTES and self.limit_bytes is not None:
            raise ExperimentError("limit_bytes and the axis bytes exclude each other")
        if self.limit_bytes is not None and self.limit_bytes < 1:
            raise ExperimentError(f"limit_bytes cannot be {self.limit_bytes}")
        check_own(self.llmzip)
        if getattr(self.llmzip, self.axis, None) is not None:
            raise ExperimentError(f"{self.axis} in llmzip is what the series goes along")
        merged = self._merged(common)
        for value in self.values:
            if self.axis == BYTES and value < 1:
                raise ExperimentError(f"no text has {value} bytes")
            if self.axis == STREAMS and not 1 <= value <= LARGEST_STREAMS:
                raise ExperimentError(f"streams must be 1 to {LARGEST_STREAMS}, not {value}")
            if self.axis == BUSY and value < 0:
                raise ExperimentError(f"{value} cores cannot be busy")
            chosen: dict[str, Any] = {} if self.axis in _NOT_OPTIONS else {self.axis: value}
            options_of(dataclasses.replace(merged, **chosen))

    def as_dict(self) -> dict[str, Any]:
        """Return it in types that JSON has; settings that are given only."""
        return dataclasses.asdict(self) | {"llmzip": _given(self.llmzip)}

    def _merged(self, common: LlmzipSettings) -> LlmzipSettings:
        return dataclasses.replace(common, **_given(self.llmzip))

    def _case(
        self, common: LlmzipSettings, text: str, value: int, text_bytes: int
    ) -> dict[str, Any]:
        """All that tells an archive from others of the experiment."""
        settings = _given(self.llmzip)
        content_bytes = self.limit_bytes or text_bytes
        if self.axis == BYTES:
            content_bytes = value
        else:
            settings[self.axis] = value
        # What another series leaves to llmzip, or to the experiment, is the same archive.
        usual = _given(common)
        level = settings.get("level", usual.setdefault("level", DEFAULT_LEVEL))
        usual.setdefault("window_tokens", LEVELS[level].window_tokens)
        usual[BUSY] = 0
        own = {name: chosen for name, chosen in settings.items() if usual.get(name) != chosen}
        return {"text": text, "bytes": content_bytes, "settings": own}


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What an experiment file says."""

    common: CommonPart
    series: tuple[Series, ...]


def read_experiment(path: Path) -> Experiment:
    """Return the experiment in a TOML file.

    Raises:
        ExperimentError: it cannot be read, or is none.
    """
    table = read_table(path)
    try:
        check_keys(table, ("title", "text", "series"), ("llmzip",))
        common = common_part(path, table)
        check_own(common.llmzip)
        series = named_records(Series, "series", table["series"])
        texts = {text.name: text for text in common.texts}
        for each in series:
            try:
                each.check(common.llmzip, texts)
            except (ExperimentError, UsageError) as error:
                raise ExperimentError(f"series {each.name}: {error}") from error
        return Experiment(common=common, series=series)
    except (ExperimentError, UsageError) as error:
        raise ExperimentError(f"{path}: {error}") from error


def name_of(case: Mapping[str, Any]) -> str:
    """Return what a case is called in messages."""
    settings = [f"{name} {value}" for name, value in case["settings"].items()]
    return ", ".join([f"{case['text']}[:{case['bytes']}]", *settings])


def _given(settings: LlmzipSettings) -> dict[str, Any]:
    return {
        name: value for name, value in dataclasses.asdict(settings).items() if value is not None
    }

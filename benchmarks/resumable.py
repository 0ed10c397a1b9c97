"""Records of experiments that take hours: on disk after every result, gone on with by a rerun.

Every row of a record has a "case", which says what was done; a case that has a verified row is
not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment
from benchmarks.experiment_file import ExperimentError
from benchmarks.records import SCHEMA_VERSION, write_json

Row = dict[str, Any]

# progress(what, finished, total): what comes next, how many archives are done, of how many.
Progress = Callable[[str, int, int], None]


def record_path(output: Path, benchmark: str, name: str) -> Path:
    """Return where the record of the experiment of that name is."""
    return output / f"{name if name.startswith(benchmark) else f'{benchmark}-{name}'}.json"


def key_of(case: Mapping[str, Any]) -> str:
    """Return what tells a case from others, of its record."""
    return json.dumps(case, sort_keys=True)


def read_record(path: Path, benchmark: str) -> dict[str, Any]:
    """Return the record at a path.

    Raises:
        ExperimentError: it cannot be read, or is none of this benchmark.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path}: no record there: {error}") from error
    if not isinstance(found, dict) or found.get("benchmark") != benchmark:
        raise ExperimentError(f"{path}: not a record of an experiment on {benchmark}")
    return found


class ResumedRecord:
    """The record of an experiment, as it grows.

    Attributes:
        content: in types that JSON has.
    """

    def __init__(
        self, path: Path, benchmark: str, title: str, experiment: Mapping[str, Any]
    ) -> None:
        """Go on with the record at `path`, where there is one.

        Args:
            experiment: all that has to be the same for results to go together.

        Raises:
            ExperimentError: that is the record of another experiment.
        """
        self._path = path
        self._keys: list[str] = []
        self._known: dict[str, Row] = {}
        self.content: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "benchmark": benchmark,
            "title": title,
            # As JSON has it: tuples are lists.
            "experiment": json.loads(json.dumps(experiment)),
            "sessions": [],
            "rows": [],
        }
        if not path.is_file():
            return
        found = read_record(path, benchmark)
        if found.get("experiment") != self.content["experiment"]:
            raise ExperimentError(
                f"{path.name} is the record of another experiment or model; rename it to start anew"
            )
        self.content |= {"sessions": found["sessions"], "rows": found["rows"]}

    def expect(self, cases: Sequence[Mapping[str, Any]]) -> None:
        """Keep the verified rows of these cases, in this order, and no others."""
        self._keys = [key_of(case) for case in cases]
        self._known = {key_of(row["case"]): row for row in self.content["rows"] if row["verified"]}
        self._order()

    @property
    def finished(self) -> int:
        """How many cases have a row."""
        return len(self.content["rows"])

    @property
    def total(self) -> int:
        """How many cases there are."""
        return len(self._keys)

    def lacks(self, case: Mapping[str, Any]) -> bool:
        """Return whether a case has no row."""
        return key_of(case) not in self._known

    def begin_session(self, threads: int | None) -> None:
        """Note on what machine and by which versions the rows from now on are made."""
        self.content["sessions"].append(describe_environment() | {"threads": threads})

    def put(self, row: Row) -> None:
        """Write the record with one row more."""
        session = len(self.content["sessions"]) - 1
        self._known[key_of(row["case"])] = row | {"session": session}
        self._order()
        self.write()

    def write(self) -> None:
        """Write the record as it is."""
        write_json(self._path, self.content)

    def _order(self) -> None:
        self.content["rows"] = [self._known[key] for key in self._keys if key in self._known]

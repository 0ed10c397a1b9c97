"""An experiment file: texts and settings of llmzip (`experiment_file`), and the plan of one kind.

title = "..."
kind = "kinds"                  # one of `plans.PLANS`; the table of that name is its plan

[[text]]
name = "enwik6"
paths = ["corpora/enwik/enwik6"]
sha256 = "..."

[kinds]
steering = ["none", "trained:8:300steps"]
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.errors import UsageError
from benchmarks.experiment_file import (
    CommonPart,
    ExperimentError,
    check_keys,
    common_part,
    of_table,
    read_table,
)
from benchmarks.steering.plans import PLANS, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What an experiment file says."""

    common: CommonPart
    plan: Plan

    def as_dict(self) -> dict[str, Any]:
        """Return all that decides the results, in types that JSON has."""
        return self.common.as_dict() | {
            "kind": self.plan.kind,
            "plan": dataclasses.asdict(self.plan),  # type: ignore[call-overload]
        }


def read_experiment(path: Path) -> Experiment:
    """Return the experiment in a TOML file.

    Raises:
        ExperimentError: it cannot be read, or is none.
    """
    table = read_table(path)
    try:
        return _experiment(path, table)
    except (ExperimentError, UsageError, ValueError) as error:
        raise ExperimentError(f"{path}: {error}") from error


def _experiment(path: Path, table: dict[str, Any]) -> Experiment:
    kind: Any = table.get("kind")
    if kind not in PLANS:
        raise ExperimentError(f"kind {kind!r}; there are {', '.join(PLANS)}")
    check_keys(table, ("title", "kind", "text", kind), ("llmzip",))
    return Experiment(
        common=common_part(path, table), plan=of_table(PLANS[kind], kind, table[kind])
    )

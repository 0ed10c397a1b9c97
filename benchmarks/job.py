"""One call in a process of its own, with what it took:

    python -m benchmarks.job MODULE:FUNCTION ARGUMENTS.json REPORT.json

The report holds {"value", "wall_s", "cpu_s", "peak_bytes"}, or {"error"}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any


def main(target: str, arguments_file: str, report_file: str) -> None:
    """Call `target` with the arguments of one file and report into the other."""
    arguments = json.loads(Path(arguments_file).read_text(encoding="utf-8"))
    report: dict[str, Any]
    try:
        module, _, name = target.partition(":")
        function = getattr(import_module(module), name)
        cpu_s, started_s = _cpu_s(), time.perf_counter()
        value = function(**arguments)
        report = {
            "wall_s": time.perf_counter() - started_s,
            "cpu_s": _cpu_s() - cpu_s,
            "peak_bytes": peak_bytes(),
            "value": value,
        }
    except Exception as error:  # whatever a program raises is its result here
        report = {"error": f"{type(error).__name__}: {error}"}
    Path(report_file).write_text(json.dumps(report), encoding="utf-8")


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_bytes() -> int:
    """Return the most resident memory of this process, or of a child that has ended, so far."""
    import resource

    # A process inherits ru_maxrss from the one that started it; VmHWM is its own.
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        pass
    else:
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                own = int(line.split()[1]) * 1024
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit_bytes)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""On what machine, from which sources and with which versions a benchmark ran."""

from __future__ import annotations

import os
import platform
import subprocess
import time
import tomllib
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from archiver.predict.machine import processor_name

REPOSITORY = Path(__file__).resolve().parent.parent

# Timings taken while others work tell little: with one core of two taken, PyTorch's waiting
# threads slow stepwise inference down thirtyfold (27 tokens a second to 0.8).
BUSY_CORES_MAX = 0.2
_SAMPLE_S = 1.0

LIBRARIES = (
    "numpy", "numba", "llvmlite", "torch", "tokenizers", "safetensors", "gguf", "transformers",
    "zstandard", "brotli", "pyppmd", "xxhash",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Return date, commit, versions and hardware in types that JSON has; no machine's name."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(REPOSITORY),
        "versions": versions(LIBRARIES),
        "hardware": hardware(),
        "busy_cores_before": busy_cores(),
    }


def coder_versions() -> dict[str, int]:
    """Return what decides an archive's integers besides the model and the settings."""
    from archiver.mixing.parameters import MIXER_VERSION
    from archiver.predict.engine_base import ENGINE_VERSION

    return {"engine_version": ENGINE_VERSION, "mixer_version": MIXER_VERSION}


def model_identity(model: str) -> dict[str, Any]:
    """Return what decides an archive's integers besides the settings."""
    from archiver.predict import registry

    return {"package_fingerprint": registry.resolve(model).fingerprint, **coder_versions()}


def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit, and whether tracked or new files differ from it; None where unknown."""
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions(libraries: Iterable[str]) -> dict[str, str | None]:
    """Return the version of Python, llmzip and each library; None for what is not installed."""
    found: dict[str, str | None] = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "llmzip": _llmzip_version(),
    }
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _llmzip_version() -> str | None:
    # The sources beside this folder are what runs, installed or not.
    project = REPOSITORY / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    try:
        return version("llmzip")
    except PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """Return what the figures of speed depend on."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": processor_name(),
        "cores": usable_cores(),
        "memory_bytes": _memory_bytes(),
    }


def busy_cores() -> float | None:
    """Return how many cores others keep busy, measured for a moment; None where unknown."""
    before = _cpu_ticks()
    if before is None:
        return None
    time.sleep(_SAMPLE_S)
    after = _cpu_ticks()
    if after is None or after[1] <= before[1]:
        return None
    cores = os.cpu_count() or 1
    return round(cores * (after[0] - before[0]) / (after[1] - before[1]), 2)


def _cpu_ticks() -> tuple[int, int] | None:
    """Return the time that all cores together have worked and existed, since the start."""
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return None
    ticks = [int(field) for field in first.split()[1:9]]
    idle = ticks[3] + ticks[4]  # doing nothing, waiting for a disk
    return sum(ticks) - idle, sum(ticks)


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None

"""What float arithmetic depends on beside the model: processor, threads and library versions."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from archiver.container.layout import MachineSection
from archiver.errors import MachineMismatchError

THREADS = "threads"
_THREADS_MAX = 1024
_ABSENT = "none"


def processor_name() -> str:
    """Return the processor's name as the system gives it, with what tells its generation."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or "unknown"
    if "cpu family" in fields and "model" in fields:
        model += f" (family {fields['cpu family']}, model {fields['model']})"
    return model


def this_machine(threads: int) -> MachineSection:
    """Return what an archive of the float engine says of this machine.

    Args:
        threads: how many multiply matrices.
    """
    import torch

    # Builds of one version differ in their libraries of matrix products.
    build = hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:16]
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        THREADS: str(threads),
        "torch": str(torch.__version__),
        "build of torch": build,
        "transformers": _version("transformers"),
    }
    return MachineSection(facts=tuple(facts.items()))


def threads_of(section: MachineSection) -> int:
    """Return how many threads a machine section names; 1 where it names no number."""
    text = dict(section.facts).get(THREADS, "")
    number = int(text) if text.isdecimal() and len(text) <= 4 else 1
    return number if 1 <= number <= _THREADS_MAX else 1


def differences(section: MachineSection, threads: int | None) -> list[str]:
    """Return in what this machine differs from an archive's, each in words; empty for in nothing.

    Args:
        threads: how many are asked for; None for as many as the archive had.
    """
    theirs = dict(section.facts)
    ours = dict(this_machine(threads or threads_of(section)).facts)
    return [
        f"{name}: {theirs.get(name, _ABSENT)} there, {ours.get(name, _ABSENT)} here"
        for name in theirs | ours
        if theirs.get(name) != ours.get(name)
    ]


def mismatch(found: list[str]) -> MachineMismatchError:
    """Return the error that names what differs."""
    return MachineMismatchError(
        "the float engine made this archive, which decodes only on the machine and with the"
        f" versions that it was made with; {'; '.join(found)}"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _ABSENT

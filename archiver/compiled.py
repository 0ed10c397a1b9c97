"""Functions compiled for this machine, and which compiled code of earlier runs may serve again.

numba keeps compiled code on disk and takes it for fresh as long as the function's own file is the
same. But that code holds all functions that it calls and all constants that it imports, so after
an upgrade a function whose file did not change would go on as before while others do not. Here
compiled code lies in a folder named by a hash of all files that it can come from.

Source: numba's documentation, "Notes on Caching" (changes in other files are not seen).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from llvmlite.binding import get_host_cpu_name
from numba import config, njit

_PACKAGE = Path(__file__).parent
SOURCES = (
    "codec/symbols.py", "coding", "compiled.py", "errors.py", "mixing", "predict/kernels",
    "steering/coordinates.py", "text", "types.py", "workshop/kernels.py",
)  # fmt: skip
"""Files and folders of this package that compiled functions come from, with their constants."""

_cache_dir_lock = threading.Lock()  # modules may be imported in several threads


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: compile the function when it is first called, or load it from an earlier run.

    Compiled functions release the GIL; a division by zero follows IEEE; and no floating-point
    operation is reordered, contracted or approximated unless `fastmath` is among the options.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        with _cache_dir_lock:
            before = config.CACHE_DIR
            config.CACHE_DIR = str(_cache_folder())  # numba reads it here and never again
            try:
                return njit(nogil=True, cache=True, error_model="numpy", **options)(function)
            finally:
                config.CACHE_DIR = before

    return decorate


@cache
def _cache_folder() -> Path:
    """Where compiled code lies: where the user wants numba's, or beside this file, or at home."""
    name = f"compiled-{_sources_hash()}"
    if config.CACHE_DIR:
        return Path(config.CACHE_DIR) / name
    beside = _PACKAGE / "__pycache__"
    if os.access(beside if beside.exists() else _PACKAGE, os.W_OK):
        return beside / name
    from archiver.predict.home import home_folder

    return home_folder() / name


def is_complete(shapes: str) -> bool:
    """Return whether `set_complete` was called for these sources and this kind of processor.

    Args:
        shapes: of the models, as part of a file's name: others need other functions.
    """
    return _complete_mark(shapes).is_file()


def set_complete(shapes: str) -> None:
    """Note that whatever models of these shapes usually need has been compiled."""
    mark = _complete_mark(shapes)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _complete_mark(shapes: str) -> Path:
    # numba compiles for the processor that it runs on, and again for another.
    return _cache_folder() / f"complete-{get_host_cpu_name()}-{shapes}"


def _sources_hash() -> str:
    digest = hashlib.sha256()
    for source in SOURCES:
        path = _PACKAGE / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(_PACKAGE).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:16]

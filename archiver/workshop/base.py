"""Where a workshop command's weights come from, and what becomes of its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from archiver.errors import ModelMissingError, OutputError
from archiver.predict import home

if TYPE_CHECKING:
    import numpy as np

    from archiver.predict.package import ModelPackage
    from archiver.predict.packed import Packing
    from archiver.predict.sources import SourceModel


def open_base(name: str, progress: home.Progress = home.no_progress) -> SourceModel:
    """The weights of a model: of a GGUF file, a folder, or a model that llmzip knows by name.

    Its history names the weights where it would be empty.

    Raises:
        ModelError: there is no such file or name, or it cannot be fetched or read.
    """
    from archiver.predict import registry
    from archiver.predict.sources import read_source

    if Path(name).exists():
        source = read_source(Path(name))
    else:
        found = registry.read_known_source(name, progress)
        if found is None:
            raise ModelMissingError(
                f"{name}: neither a file or folder, nor a model that llmzip knows; the workshop "
                "works on weights, which a package no longer holds"
            )
        source = found
    if source.history:
        return source
    from archiver.predict.adapter import weights_sha256

    line = f"weights of {source.name}, SHA-256 {weights_sha256(source)[:16]}"
    return dataclasses.replace(source, history=(line,))


def store_result(
    folder: Path,
    source: SourceModel,
    packed: Mapping[str, tuple[Packing, Mapping[str, np.ndarray]]] | None = None,
    *,
    name: str | None = None,
    progress: home.Progress = home.no_progress,
) -> ModelPackage | None:
    """Write a model into a folder, and make a package of it where it is given a name.

    Raises:
        OutputError: the folder holds something already, or cannot be written.
    """
    from archiver.predict import registry
    from archiver.predict.sources_workshop import write_workshop_folder

    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder}: exists already")
        write_workshop_folder(folder, source, packed or {})
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
    return None if name is None else registry.add(folder, name, progress)

"""The model that a workshop command starts from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from archiver.predict import home

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel


def open_base(name: str, progress: home.Progress = home.no_progress) -> SourceModel:
    """The weights of a model: of a GGUF file, a folder, or a model that llmzip knows by name.

    Raises:
        ModelError: there is no such file or name, or it cannot be fetched or read.
    """
    from archiver.errors import ModelMissingError
    from archiver.predict.fetch import fetch_member
    from archiver.predict.known import KNOWN_MODELS
    from archiver.predict.sources import read_source

    for known in KNOWN_MODELS:
        if name == known.name or name in known.aliases:
            with home.home_locked(progress), home.scratch_folder() as scratch:
                source = read_source(fetch_member(known.origin, scratch, progress))
                # The file is gone after this; the tensors of a source are read when asked for.
                held = {key: source.tensors[key] for key in source.tensors}
            return dataclasses.replace(source, tensors=held, name=known.name)
    if not Path(name).exists():
        raise ModelMissingError(
            f"{name}: neither a file or folder, nor a model that llmzip knows; the workshop works "
            "on weights, which a package no longer holds"
        )
    return read_source(Path(name))

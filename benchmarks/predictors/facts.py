"""What is known of weights and packages: sizes, shapes, what pruning measured."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage


def describe_weights(model: str) -> dict[str, Any]:
    """Return what is known of weights; called in a fresh process.

    Args:
        model: a folder, a file or a name that llmzip knows.

    Returns:
        "history"; "parameters": tied ones count once; "layers".
    """
    from archiver.predict.sources import expected_shapes
    from archiver.workshop.base import open_base

    source = open_base(model)
    return {
        "history": list(source.history),
        "parameters": sum(map(prod, expected_shapes(source.config).values())),
        "layers": source.config.layers,
    }


def pruning_of(weights: Path) -> dict[str, Any] | None:
    """Return what removing blocks measured; None where none were removed."""
    path = weights / "prune.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    removed, distances = found["removed_layers"], found["angular_distances"]
    if not removed:
        return None
    return {
        "removed_layers": sorted(removed),
        "calibration_bpb": found["calibration_bpb"],
        "angular_distances": distances[len(removed) - 1] if distances else None,
    }


def package_sizes(package: ModelPackage) -> dict[str, Any]:
    """Return what a package takes, as `packed_sizes` does for weights."""
    arrays = package.arrays
    matrices = [
        name.removesuffix(".codes")
        for name in arrays
        if name.startswith("layers.") and name.endswith(".codes")
    ]
    stored = sum(arrays[f"{m}.codes"].nbytes + arrays[f"{m}.scales"].nbytes for m in matrices)
    return {
        "stored_bytes": package.array_bytes,
        "bits_a_weight": 8 * stored / sum(arrays[f"{m}.codes"].size for m in matrices),
    }


def packed_sizes(weights: Path) -> dict[str, Any] | None:
    """Return what packed weights take; None where these are not packed.

    Returns:
        "stored_bytes": of the file; "bits_a_weight": of the blocks' matrices, scales included.
    """
    from archiver.predict.sources import expected_shapes
    from archiver.predict.sources_workshop import (
        WEIGHTS_FILE,
        is_workshop_folder,
        read_workshop_folder,
    )
    from archiver.predict.tensor_file import open_tensor_file

    if not is_workshop_folder(weights):
        return None
    entries = open_tensor_file(weights / WEIGHTS_FILE).entries
    if not any(name.endswith(".codes") for name in entries):
        return None
    shapes = expected_shapes(read_workshop_folder(weights).config)
    matrices = {
        name: prod(shape)
        for name, shape in shapes.items()
        if name.startswith("layers.") and len(shape) == 2
    }
    stored = sum(
        entry.length_bytes
        for name, entry in entries.items()
        if name in matrices or name.rpartition(".")[0] in matrices
    )
    return {
        "stored_bytes": (weights / WEIGHTS_FILE).stat().st_size,
        "bits_a_weight": 8 * stored / sum(matrices.values()),
    }

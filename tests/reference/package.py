"""A model package, read from its folder; the fingerprint is recomputed.

Source: FORMAT.md, "Model packages"; the safetensors file format.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.errors import ModelMismatchError

DTYPES = {"I8": "<i1", "U8": "<u1", "I32": "<i4", "I64": "<i8", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A configuration, the named arrays, and their SHA-256."""

    config: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    fingerprint: bytes

    def tokens(self) -> list[bytes]:
        """The tokens' byte strings by rank."""
        data = self.arrays["tokens.data"].tobytes()
        offsets = [int(offset) for offset in self.arrays["tokens.offsets"]]
        return [data[a:b] for a, b in itertools.pairwise(offsets)]


def read_package(folder: Path) -> Package:
    """The package in a folder.

    Raises:
        ModelMismatchError: it is not what its manifest says.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    data = (folder / "package.safetensors").read_bytes()
    table_bytes = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + table_bytes])
    table.pop("__metadata__", None)
    items = data[8 + table_bytes :]

    parts = [b"llmzip-package-2", canonical_json(manifest["config"])]
    arrays = {}
    for name in sorted(table):
        entry = table[name]
        begin, end = entry["data_offsets"]
        dtype = np.dtype(DTYPES[entry["dtype"]])
        assert end - begin == dtype.itemsize * math.prod(entry["shape"]), name
        arrays[name] = np.frombuffer(items[begin:end], dtype).reshape(entry["shape"])
        parts += [name.encode(), entry["dtype"].encode(), canonical_json(entry["shape"])]
        parts.append(items[begin:end])
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    if digest.hexdigest() != manifest["fingerprint"]:
        raise ModelMismatchError(f"the package has fingerprint {digest.hexdigest()}")
    return Package(config=manifest["config"], arrays=arrays, fingerprint=digest.digest())


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces; a float has the fewest digits that tell it apart."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

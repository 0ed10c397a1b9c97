"""Array aliases shared by the whole package."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Int8Array: TypeAlias = NDArray[np.int8]
UInt8Array: TypeAlias = NDArray[np.uint8]
UInt16Array: TypeAlias = NDArray[np.uint16]
Int32Array: TypeAlias = NDArray[np.int32]
UInt32Array: TypeAlias = NDArray[np.uint32]
Int64Array: TypeAlias = NDArray[np.int64]
UInt64Array: TypeAlias = NDArray[np.uint64]
Float32Array: TypeAlias = NDArray[np.float32]
Float64Array: TypeAlias = NDArray[np.float64]

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of content bytes finished since the last call."""

LocalHeads: TypeAlias = tuple[tuple[int, ...], ...]
"""Whether a key/value head is local, by layer and head: 1 or 0."""

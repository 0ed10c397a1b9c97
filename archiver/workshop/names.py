"""Names of the matrices as the workshop joins them: those that read the same vector are one."""

from __future__ import annotations

from archiver.predict.architectures import JOINED

__all__ = ["JOINED", "MATRICES"]

MATRICES = ("qkv", "o", "gate_up", "down")

"""Names of the matrices as the workshop joins them: those that read the same vector are one."""

from __future__ import annotations

JOINED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
MATRICES = ("qkv", "o", "gate_up", "down")

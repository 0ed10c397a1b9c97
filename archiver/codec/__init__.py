"""Frames of text to payloads and back, through a model package."""

from archiver.codec.encoder import PricedSymbols
from archiver.codec.frame import FrameCodec, PayloadError, header_for, open_codec, settings_for

__all__ = [
    "FrameCodec",
    "PayloadError",
    "PricedSymbols",
    "header_for",
    "open_codec",
    "settings_for",
]

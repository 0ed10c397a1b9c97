"""Frames of text to payloads and back, through a model package."""

from archiver.codec.frame import FrameCodec, PayloadError, header_for, open_codec, settings_for

__all__ = ["FrameCodec", "PayloadError", "header_for", "open_codec", "settings_for"]

"""The first use on a machine: everything is compiled at once, and the user is told why it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from archiver import compiled
from archiver.codec.frame import open_codec, settings_for
from archiver.levels import Chunking
from archiver.options import CompressOptions
from archiver.predict.package import ModelPackage

STAGE = "compiling for this machine, once; this takes a minute or two"

# A thread with few streams and one with many use different kernels.
_CHUNKINGS = (Chunking(tokens_min=1, streams=4), Chunking(tokens_min=1, streams=32))
_THREADS = 2
# What of a model decides which functions it needs.
_SHAPES = ("architecture", "hidden", "heads", "kv_heads", "head_dim", "ffn")
_SAMPLE = (
    b"It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    b"must be in want of a wife. However little known the feelings or views of such a man may be "
    b"on his first entering a neighbourhood, this truth is so well fixed in the minds of the "
    b"surrounding families, that he is considered the rightful property of some one or other of "
    b"their daughters. However little known: \xff\xfe\xfd. It is a truth universally acknowledged, "
    b"that a single man in possession of a good fortune, must be in want of a wife. However little "
    b"known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    b"truth is so well fixed in the minds of the surrounding families.\n"
)


def compile_all(package: ModelPackage, report: Callable[[str, int, int], None] | None) -> None:
    """What models of these shapes need at default settings is compiled, and kept for later.

    Left to itself, each function is compiled where it is first called: a decoder would stand still
    for a minute in the middle of its work. Nothing happens where it has been done before.

    Args:
        package: a model of the exact engine, to run on the processor.
        report: called with the stage, if there is something to do.
    """
    described = repr([package.config.get(name) for name in _SHAPES])
    shapes = hashlib.sha256(described.encode()).hexdigest()[:16]
    if compiled.is_complete(shapes):
        return
    if report is not None:
        report(STAGE, 0, 0)
    predictor, mixer = settings_for(package, CompressOptions())
    for chunking in _CHUNKINGS:
        codec = open_codec(predictor, mixer, package=package, threads=_THREADS, chunking=chunking)
        decoded = codec.decode(codec.encode(_SAMPLE), len(_SAMPLE))
        assert decoded == _SAMPLE
    compiled.set_complete(shapes)

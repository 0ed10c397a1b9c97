"""Where the model runs: the engine for the processor, or one on a device that proves its equal."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from archiver.errors import ExactnessError, UsageError
from archiver.options import CPU, CUDA
from archiver.predict.engine import Engine, EngineBase, SoftPrompt
from archiver.types import Int32Array

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage

# A check short enough for every start, in windows so short that positions leave them.
CHECK_WINDOW = 12
CHECK_STREAMS = 2
CHECK_STEPS = (30, 1, 1, 6)
CHECK_VECTORS = 3

AnyEngine = TypeVar("AnyEngine", bound=EngineBase)


def open_engine(
    package: ModelPackage, device: str, *, window: int, local_window: int, sinks: int
) -> EngineBase:
    """The package's engine on one of `options.DEVICES`; arguments as for `EngineBase`.

    Raises:
        UsageError: windows or sinks out of range, no such device here, or a model that it does
            not run. InvalidModelError: a malformed package.
        ExactnessError: the device computes other integers than the processor.
    """
    if device == CUDA:
        require_cuda()
    engine = Engine(package, window=window, local_window=local_window, sinks=sinks)
    if device == CPU:
        return engine
    from archiver.predict.device.engine import DeviceEngine

    other = DeviceEngine(package, device, window=window, local_window=local_window, sinks=sinks)
    check_conformance(engine, other, device)
    return other


def require_cuda() -> None:
    """Return if torch has a CUDA device here.

    Raises:
        UsageError: it has none.
    """
    import torch

    if not torch.cuda.is_available():
        build = "finds no such GPU" if torch.version.cuda else "is built without CUDA"
        raise UsageError(f"the device cuda cannot be used: torch {torch.__version__} {build}")


def check_conformance(engine: Engine, other: EngineBase, device: str) -> None:
    """Return if both engines give the same bits for a few tokens, with and without a soft prompt.

    Raises:
        ExactnessError: they do not.
    """
    engine, other = narrowed(engine), narrowed(other)
    prompt = SoftPrompt(
        codes=np.array(engine.embed_codes[:CHECK_VECTORS]),
        scales=np.array(engine.embed_scales[:CHECK_VECTORS]),
    )
    pairs = [(engine, other), (engine.steered(prompt), other.steered(prompt))]
    for mine, theirs in pairs:
        for expected, found in zip(_outputs(mine), _outputs(theirs), strict=True):
            if not np.array_equal(expected.view(np.uint8), found.view(np.uint8)):
                raise ExactnessError(
                    f"the device {device} does not compute the same bits as the processor; "
                    "use --device cpu"
                )


def narrowed(engine: AnyEngine) -> AnyEngine:
    """An engine over the same weights with windows of at most CHECK_WINDOW tokens."""
    result = copy.copy(engine)
    result.window = min(engine.window, CHECK_WINDOW)
    shorter = engine.windows * result.window // engine.window
    result.windows = np.maximum(shorter, 1).astype(np.int32)
    return result


def _outputs(engine: EngineBase) -> list[np.ndarray]:
    """Hidden codes, their scales and the head's products of some tokens."""
    tokens = sum(CHECK_STEPS)
    numbers = np.arange(CHECK_STREAMS * tokens, dtype=np.int64).reshape(CHECK_STREAMS, tokens)
    inputs: Int32Array = (numbers * 7919 % (engine.vocabulary.size + 1)).astype(np.int32)
    session = engine.session(streams=CHECK_STREAMS, tokens=tokens, steps=max(CHECK_STEPS))
    found: list[np.ndarray] = []
    start = 0
    for steps in CHECK_STEPS:
        part = np.ascontiguousarray(inputs[:, start : start + steps])
        codes, scales = session.advance(part)
        products, _, _ = engine.head(codes[-1:], scales[-1:])
        found += [codes, scales, products]
        start += steps
    return found

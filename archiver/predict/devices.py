"""Where the model runs: the engine for the processor, or one on a device that proves its equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archiver.errors import UsageError
from archiver.options import CPU, CUDA
from archiver.predict.engine import Engine
from archiver.predict.engine_base import EngineBase

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage


def open_engine(
    package: ModelPackage, device: str, *, window: int, local_window: int, sinks: int
) -> EngineBase:
    """The package's engine on one of `options.DEVICES`; arguments as for `EngineBase`.

    Raises:
        UsageError: windows or sinks out of range, no such device here, or a model that it does
            not run. InvalidModelError: a malformed package.
        ExactnessError: the device computes other bits than the processor.
    """
    if device == CUDA:
        require_cuda()
    engine = Engine(package, window=window, local_window=local_window, sinks=sinks)
    if device == CPU:
        return engine
    # Loading torch takes longer than compressing a short text.
    from archiver.predict.device import conformance
    from archiver.predict.device.engine import DeviceEngine

    other = DeviceEngine(package, device, window=window, local_window=local_window, sinks=sinks)
    conformance.check(engine, other)
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

"""`llmzip model quantize`: a plan, and what it makes of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archiver.errors import UsageError
from archiver.predict.packed import Packing, expand
from archiver.predict.sources import LazyTensors, expected_shapes
from archiver.workshop.importance import input_sizes
from archiver.workshop.llama import FloatLlama
from archiver.workshop.rounding import Packed, check_packing, gptq_model, quantize_model

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel
    from archiver.types import Float32Array
    from archiver.workshop.calibration import Calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizing:
    """How to quantize.

    Attributes:
        method: "rtn", "nf4" or "gptq".
        packing: of the blocks' matrices; head: of embedding and head.
        search: of round to nearest, whether ranges are chosen for the least error.
        damping, by_activation: of GPTQ.
    """

    method: str
    packing: Packing
    head: Packing
    search: bool = True
    damping: float = 0.01
    by_activation: bool = True

    def __post_init__(self) -> None:
        if self.method not in ("rtn", "nf4", "gptq"):
            raise UsageError(f"unknown method {self.method!r}")
        if (self.method == "nf4") != (self.packing.method == "nf4"):
            raise UsageError("nf4 is a method and a packing, both or neither")
        if not self.damping > 0:
            raise UsageError("the damping has to be positive")

    @property
    def needs_calibration(self) -> bool:
        """Whether the result depends on a calibration text."""
        return self.method == "gptq" or (self.method == "rtn" and self.search)

    def describe(self) -> str:
        """For the history."""
        packing, head = self.packing, self.head
        more = {
            "rtn": ", ranges searched" if self.search else "",
            "nf4": ", scales in 8 bits",
            "gptq": f", damping {self.damping:g}" + (", act-order" if self.by_activation else ""),
        }[self.method]
        return (
            f"quantized: {self.method} {packing.bits} bits by {packing.group} "
            f"({packing.method}){more}; embedding {head.bits} bits by {head.group}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizingReport:
    """Sizes: bits a weight of the blocks' matrices, scales included, and bytes of all weights."""

    bits_a_weight: float
    all_bytes: int


def quantize_source(
    source: SourceModel,
    plan: Quantizing,
    calibration: Calibration | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[SourceModel, dict[str, Packed], QuantizingReport]:
    """The model that the packed tensors expand to, those tensors, and their size.

    Raises:
        UsageError: the plan does not fit the model, or needs a calibration text.
    """
    check_packing(plan.packing, source)
    if source.config.hidden % plan.head.group:
        raise UsageError(f"groups of {plan.head.group} do not divide {source.config.hidden}")
    if plan.needs_calibration and calibration is None:
        raise UsageError(f"{plan.method} needs a calibration text")
    step = plan.describe()
    if calibration is not None and plan.needs_calibration:
        step = f"{step}, {calibration.describe()}"
    if plan.method == "gptq":
        assert calibration is not None
        packed = gptq_model(
            FloatLlama.from_source(source), source, calibration.windows, plan.packing, plan.head,
            damping=plan.damping, by_activation=plan.by_activation, progress=progress,
        )  # fmt: skip
    else:
        sizes = None
        if calibration is not None and plan.needs_calibration:
            model = FloatLlama.from_source(source)
            sizes = input_sizes(model, calibration.windows, source.start_token_id)
        packed = quantize_model(
            source, plan.packing, plan.head,
            search=plan.method == "rtn" and plan.search, sizes=sizes, progress=progress,
        )  # fmt: skip
    shapes = expected_shapes(source.config)

    def read(name: str) -> Float32Array:
        if name not in packed:
            return source.tensors[name]
        packing, arrays = packed[name]
        named = {f"{name}{suffix}": array for suffix, array in arrays.items()}
        return expand(name, shapes[name], packing, named)

    result = dataclasses.replace(
        source, tensors=LazyTensors(shapes, read), history=(*source.history, step)
    )
    blocks = [name for name in packed if name.startswith("layers.")]
    block_bytes = sum(_bytes_of(packed[name]) for name in blocks)
    weights = sum(shapes[name][0] * shapes[name][1] for name in blocks)
    plain = sum(shapes[name][0] * 4 for name in shapes if name not in packed)
    return (
        result,
        packed,
        QuantizingReport(
            bits_a_weight=8 * block_bytes / weights,
            all_bytes=sum(_bytes_of(found) for found in packed.values()) + plain,
        ),
    )


def _bytes_of(packed: Packed) -> int:
    return sum(array.nbytes for array in packed[1].values())

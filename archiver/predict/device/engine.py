"""The exact transformer on a device of torch's: the data flow of `archiver.predict.session`.

Tokens come from the processor's memory, and what goes to the head comes back there: hidden codes,
and the products over the vocabulary, from which the same kernels make weights as for any engine.

Source: FORMAT.md, "Predictor".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from archiver.errors import UsageError
from archiver.predict.architectures import ARCHITECTURES
from archiver.predict.device import layers
from archiver.predict.device.attention import Coded, HeadSet, Reach, attend
from archiver.predict.device.products import DeviceProduct, choose_product
from archiver.predict.engine_base import EngineBase
from archiver.predict.predictor import Scaled
from archiver.types import Float32Array, Int8Array, Int32Array

if TYPE_CHECKING:
    from archiver.predict.package import Arrays, ModelPackage

SLOTS_UNIT = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceLinear:
    """A matrix of codes with one scale an output, on the device.

    Attributes:
        product: by the matrix of codes; scales: float32 [outputs].
    """

    product: DeviceProduct
    scales: Tensor

    @classmethod
    def of(
        cls, arrays: Arrays, name: str, product: type[DeviceProduct], device: str
    ) -> DeviceLinear:
        """The matrix of that name."""
        return cls(
            product=product(_upload(arrays[f"{name}.codes"], device)),
            scales=_upload(arrays[f"{name}.scales"], device),
        )

    def __call__(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The matrix times codes * scales, float32 [rows, outputs]; codes int8 [rows, inputs],
        scales float32 [rows]."""
        return layers.scaled(self.product(codes), scales, self.scales)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceHead:
    """The head's products, for the processor.

    Attributes:
        product: by the head's codes; scales: float32 [vocabulary], of the outputs.
    """

    product: DeviceProduct
    scales: Float32Array
    device: str

    def __call__(
        self, codes: Int8Array, scales: Float32Array, room: Float32Array | None = None, /
    ) -> Scaled:
        """Products over the vocabulary; arguments as for `linear.Linear`."""
        found = self.product(_upload(codes, self.device))
        if room is None:
            room = np.empty(found.numel(), np.float32)
        product = room[: found.numel()].reshape(found.shape)
        torch.from_numpy(product).copy_(found)
        return product, scales, self.scales


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceLayer:
    """One transformer layer of the Llama family."""

    qkv: DeviceLinear
    o: DeviceLinear
    gate_up: DeviceLinear
    down: DeviceLinear


class DeviceEngine(EngineBase):
    """A package of the Llama family ready to run on a device; holds no state of any stream."""

    block_tokens = 1024

    def __init__(
        self, package: ModelPackage, device: str, *, window: int, local_window: int, sinks: int
    ) -> None:
        """Bring the weights to the device.

        Args:
            device: as torch names it; window, local_window, sinks: as for `EngineBase`.

        Raises:
            UsageError: windows or sinks out of range, or a model of another family.
            InvalidModelError: a malformed package. ExactnessError: no product is exact there.
        """
        super().__init__(package, window=window, local_window=local_window, sinks=sinks)
        if self.family != ARCHITECTURES["llama"]:
            raise UsageError(
                f"the model is of the family {self.config.architecture}; on the device {device} "
                "only Llama models run so far"
            )
        self.device = device
        arrays = package.arrays
        product = choose_product(self.inner_sizes, device)
        self._embed_by(arrays["embed.codes"], arrays["embed.scales"])
        self.head = DeviceHead(
            product=product(_upload(arrays["head.codes"], device)),
            scales=np.array(arrays["head.scales"]),
            device=device,
        )
        self.layers = [
            DeviceLayer(
                **{
                    name: DeviceLinear.of(arrays, f"layers.{number}.{name}", product, device)
                    for name in ("qkv", "o", "gate_up", "down")
                }
            )
            for number in range(self.config.layers)
        ]

    def session(self, *, streams: int, tokens: int, steps: int) -> DeviceSession:
        """Streams that hold nothing but the soft prompt; arguments as for `EngineBase.session`."""
        return DeviceSession(self, streams=streams, tokens=tokens, steps=steps)

    def prepare_thread(self) -> None:
        """The calling thread is ready to run sessions: nothing is needed."""

    def _embed_by(self, codes: Int8Array, scales: Float32Array) -> None:
        self.embed_codes = _upload(codes, self.device)
        self.embed_scales = _upload(scales, self.device)


class DeviceSession:
    """The state of some streams that advance together.

    Attributes:
        position: where the next token of every stream stands.
        sets: by layer, heads that see equally far, and the keys and values in their windows.
        sinks: by layer, keys and values of the first positions, [streams, key/value heads,
            positions, head_dim].
    """

    def __init__(self, engine: DeviceEngine, *, streams: int, tokens: int, steps: int) -> None:
        """Args: as for `EngineBase.session`."""
        self.engine = engine
        self.streams = streams
        self.position = 0
        slots = engine.cache_slots(streams=streams, tokens=tokens, steps=steps, unit=SLOTS_UNIT)
        self.sets = [
            self._sets(windows, rings) for windows, rings in zip(engine.windows, slots, strict=True)
        ]
        self.sinks = [
            (self._empty(engine.kv_heads, engine.sinks), self._empty(engine.kv_heads, engine.sinks))
            for _ in engine.layers
        ]
        positions = max(engine.lead + tokens, engine.window + engine.sinks)
        self._angles = [_upload(angles, engine.device) for angles in engine.rotary(positions)[0]]
        if engine.prompt_sinks is not None:
            every, lead = slice(None), slice(0, engine.lead)
            for layer, prompt in enumerate(engine.prompt_sinks):
                self._hold(layer, *(vectors.part(every, every, lead) for vectors in prompt))
            self.position = engine.lead

    def _empty(self, heads: int, slots: int) -> Coded:
        engine = self.engine
        return Coded.empty(self.streams, heads, slots, engine.head_dim, device=engine.device)

    def _sets(self, windows: Int32Array, rings: Int32Array) -> list[HeadSet]:
        """A layer's heads by their windows, int32 [kv_heads], and their empty rings."""
        sets = []
        for window in np.unique(windows).tolist():
            heads = np.flatnonzero(windows == window)
            sets.append(
                HeadSet(
                    window=window,
                    heads=_upload(heads, self.engine.device),
                    keys=self._empty(len(heads), int(rings[heads[0]])),
                    values=self._empty(len(heads), int(rings[heads[0]])),
                )
            )
        return sets

    def _hold(self, layer: int, keys: Coded, values: Coded) -> None:
        """The layer's caches hold keys and values of the next positions, [streams or 1, ...]."""
        keys, values = keys.of_streams(self.streams), values.of_streams(self.streams)
        for heads in self.sets[layer]:
            heads.put(self.position, keys, values)
        count = min(self.engine.sinks, self.position + keys.codes.shape[2]) - self.position
        if count > 0:
            every, first = slice(None), slice(0, count)
            numbers = torch.arange(self.position, self.position + count, device=self.engine.device)
            for mine, theirs in zip(self.sinks[layer], (keys, values), strict=True):
                mine.put(2, numbers, theirs.part(every, every, first))

    def advance(self, tokens: Int32Array) -> tuple[Int8Array, Float32Array]:
        """Every stream is `steps` tokens further; arguments as for `Session.advance`."""
        engine = self.engine
        streams, steps = tokens.shape
        assert streams == self.streams
        numbers = _upload(tokens.reshape(-1), engine.device)
        x = engine.embed_codes.index_select(0, numbers).float()
        x.mul_(engine.embed_scales.index_select(0, numbers).unsqueeze(-1))
        for number, layer in enumerate(engine.layers):
            heads = layer.qkv(*layers.normalize(x, engine.epsilon))
            heads = heads.view(streams, steps, -1, engine.head_dim)
            attended = Coded.of(self._attend(number, heads))
            x.add_(layer.o(attended.codes, attended.scales))
            up = layer.gate_up(*layers.normalize(x, engine.epsilon))
            gated = Coded.of(layers.transform(layers.gate(up), engine.span))
            x.add_(layer.down(gated.codes, gated.scales))
        codes, scales = layers.normalize(x, engine.epsilon)
        self.position += steps
        return codes.cpu().numpy(), scales.cpu().numpy()

    def _attend(self, layer: int, heads: Tensor) -> Tensor:
        """Attention's output, float32 [rows, heads * head_dim]; keys and values are held.

        Args:
            heads: queries, keys and values, float32 [streams, steps, heads + 2 kv_heads, head_dim].
        """
        engine = self.engine
        streams, steps, _, dim = heads.shape
        parts = [engine.heads, engine.kv_heads, engine.kv_heads]
        queries, keys, values = torch.split(heads, parts, 2)
        positions = torch.arange(self.position, self.position + steps, device=heads.device)
        turned_keys = Coded.of(self._turned(keys, positions))
        self._hold(layer, turned_keys.by_head(), Coded.of(values).by_head())

        queries = queries.reshape(streams, steps, engine.kv_heads, -1, dim)
        turned = self._query(queries, positions)
        out = queries.new_empty(queries.shape)
        for each in self.sets[layer]:
            limit = each.window + engine.sinks - 1
            sink_queries = None
            if engine.sinks and self.position + steps > each.window:
                some = queries.index_select(2, each.heads)
                sink_queries = self._query(some, positions.clamp(max=limit))
            sink_keys, sink_values = (kept.take(1, each.heads) for kept in self.sinks[layer])
            reach = Reach(
                start=self.position,
                sinks=engine.sinks,
                queries=turned.take(1, each.heads),
                sink_queries=sink_queries,
                sink_keys=sink_keys,
                sink_values=sink_values,
            )
            out.index_copy_(2, each.heads, attend(each, reach).permute(0, 3, 1, 2, 4))
        return out.view(streams * steps, engine.heads * dim)

    def _turned(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Vectors, float32 [streams, steps, heads, head_dim], turned to positions [steps]."""
        cosines, sines = (table.index_select(0, positions).unsqueeze(1) for table in self._angles)
        return layers.rotate(vectors, cosines, sines)

    def _query(self, queries: Tensor, positions: Tensor) -> Coded:
        """Queries turned and coded, [streams, kv_heads, group, steps, head_dim].

        Args:
            queries: float32 [streams, steps, kv_heads, group, head_dim]; positions: int64 [steps].
        """
        turned = self._turned(queries.flatten(2, 3), positions)
        coded = Coded.of(turned.view(queries.shape))
        coded.scales.mul_(float(self.engine.logit_unit))
        return coded.by_head()


def _upload(array: np.ndarray, device: str) -> Tensor:
    """The array's copy on the device."""
    return torch.tensor(array, device=device)

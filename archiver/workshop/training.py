"""The training loop of `tune` and `heal`: in pieces, with the same result as in one.

    run folder:  settings.json      what the run is: base, settings, mixture
                 corpus.safetensors the tokenized text
                 checkpoint-N.safetensors  parameters and optimizer after N steps
                 log.json           loss, learning rate and held-out bpb by step

Windows, lengths and rates are functions of the seed and the step, so a checkpoint is all that a
later call needs to go on as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from archiver.errors import InputError, UsageError
from archiver.predict import home
from archiver.predict.tensor_file import open_tensor_file, write_tensor_file
from archiver.workshop.corpus import Corpus, Tokens
from archiver.workshop.llama import FloatLlama
from archiver.workshop.losses import Loss
from archiver.workshop.measure import held_out_bpb
from archiver.workshop.names import MATRICES
from archiver.workshop.settings import TrainSettings

if TYPE_CHECKING:
    from archiver.types import Int64Array

MICRO_TOKENS = 2048  # of a batch at a time; activations take about 0.7 MB a token
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\.safetensors")


@dataclass(kw_only=True)
class Trainer:
    """A run: a model, its text, its settings, its folder.

    Attributes:
        model: trained in place.
        teacher: the model to learn from, where the settings give it a share.
        start_token_id: what stands before every window.
        written: windows that the teacher wrote, int64 [windows, steps], where the settings use
            them.
        eval_every: steps between measurements on held-out text; also measured at the start of the
            run and at its end.
        eval_windows, eval_tokens: windows of each held-out source, and their length.
    """

    folder: Path
    model: FloatLlama
    corpus: Corpus
    tokens: Tokens
    settings: TrainSettings
    start_token_id: int
    teacher: FloatLlama | None = None
    written: Int64Array | None = None
    eval_every: int = 100
    eval_windows: int = 1
    eval_tokens: int = 1024
    parameters: dict[str, torch.Tensor] = field(init=False)
    step: int = field(init=False, default=0)
    log: list[dict[str, Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._loss = Loss(self.settings.teacher_share)
        self.parameters = trained_parameters(self.model, self.settings)
        self._optimizers = _optimizers(self.parameters, self.settings)
        self._restore()
        teacher = self.teacher
        self._common = 0 if teacher is None else common_blocks(self.model, teacher, self.parameters)

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step >= self.settings.steps

    def run(
        self,
        *,
        time_limit_s: float | None = None,
        save_every_s: float = 300.0,
        progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    ) -> None:
        """Train until all steps are taken or the time is over; leave a checkpoint either way.

        Args:
            time_limit_s: how long this call may start new steps.
            save_every_s: seconds between checkpoints.
            progress: called after each step with steps done, steps in all and the loss in bits a
                token.
        """
        start_s = saved_s = time.monotonic()
        if self.step == 0 and not self.log:
            self._measure()
        while not self.done:
            loss = self._take_step()
            progress(self.step, self.settings.steps, loss)
            now_s = time.monotonic()
            if self.done or self.step % self.eval_every == 0:
                self._measure()
            over = time_limit_s is not None and now_s - start_s >= time_limit_s
            if over or self.done or now_s - saved_s >= save_every_s:
                self._save()
                saved_s = now_s
            if over:
                break

    def _take_step(self) -> float:
        settings, length = self.settings, self.settings.length_at(self.step)
        start_s = time.monotonic()
        streams = max(1, settings.batch_tokens // length)
        batch, written = self._batch(streams, length)
        total = 0.0
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        micro = max(1, MICRO_TOKENS // batch.shape[1])
        for part in torch.from_numpy(batch).split(micro):
            share = len(part) / streams
            loss = self._part_loss(part) * share
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.rate_at(self.step)
            optimizer.step()
        self.model.refresh()
        self.step += 1
        bits = total / float(np.log(2.0))
        self.log.append(
            {
                "step": self.step,
                "tokens": batch.size,
                "length": length,
                "written": written,
                "rate": settings.rate_at(self.step - 1),
                "loss_bits": round(bits, 5),
                "seconds": round(time.monotonic() - start_s, 2),
            }
        )
        return bits

    def _batch(self, streams: int, length: int) -> tuple[Int64Array, bool]:
        """The windows of this step, and whether the teacher wrote them."""
        if self.written is not None:
            generator = np.random.default_rng((self.settings.seed, self.step, 1))
            if generator.random() < self.settings.written_share:
                chosen = generator.integers(len(self.written), size=streams)
                return self.written[chosen][:, :length], True
        return self.corpus.batch(self.settings.seed, self.step, streams, length), False

    def _part_loss(self, targets: torch.Tensor) -> torch.Tensor:
        inputs = with_start(targets, self.start_token_id)
        model, teacher, common = self.model, self.teacher, self._common
        taught, entered = None, None
        if teacher is not None and self.settings.teacher_share:
            with torch.no_grad():
                entered = teacher.enter(inputs)
                for layer in range(common):
                    entered = teacher.block(layer, *entered, len(inputs))
                rest = range(common, teacher.config.layers)
                taught = (teacher.hidden(inputs, layers=rest, entered=entered), teacher.head)
        blocks = range(common if entered else 0, model.config.layers)
        hidden = model.hidden(inputs, layers=blocks, entered=entered)
        return self._loss.mean(
            hidden,
            self.model.head,
            targets.reshape(-1),
            head_parameter=self.model.head_parameter,
            teacher=taught,
        )

    def _measure(self) -> None:
        windows = self.corpus.windows(self.eval_windows, self.eval_tokens)
        by_source = held_out_bpb(self.model, windows, self.tokens, self.start_token_id)
        kinds: dict[str, list[float]] = {}
        for source in self.corpus.mixture.sources:
            if source.name in by_source:
                kinds.setdefault(source.kind, []).append(by_source[source.name])
        by_kind = {kind: float(np.mean(found)) for kind, found in kinds.items()}
        self.log.append(
            {
                "step": self.step,
                "held_out_bpb": round(float(np.mean(list(by_kind.values()))), 5),
                "by_kind": {kind: round(bpb, 5) for kind, bpb in by_kind.items()},
                "by_source": {name: round(bpb, 5) for name, bpb in by_source.items()},
            }
        )

    # --- checkpoints --------------------------------------------------------------------------

    def _save(self) -> None:
        """Leave a checkpoint of this step, then remove the older ones."""
        arrays = {f"parameter.{name}": p.detach().numpy() for name, p in self.parameters.items()}
        for number, optimizer in enumerate(self._optimizers):
            names = [name for group in optimizer.param_groups for name in group["names"]]
            state = optimizer.state_dict()["state"]
            for index, name in enumerate(names):
                for key, value in state.get(index, {}).items():
                    array = np.atleast_1d(torch.as_tensor(value).detach().numpy())
                    arrays[f"optimizer.{number}.{key}.{name}"] = array
        target = self.folder / f"checkpoint-{self.step}.safetensors"
        fresh = self.folder / "checkpoint.part"
        write_tensor_file(fresh, arrays, {"log": json.dumps(self.log)})
        home.sync(fresh)
        os.replace(fresh, target)
        for step, path in _checkpoints(self.folder):
            if step < self.step:
                path.unlink()
        write_json(self.folder / "log.json", self.log)

    def _restore(self) -> None:
        """Go on from the latest checkpoint, where there is one."""
        found = _checkpoints(self.folder)
        if not found:
            return
        self.step, path = found[-1]
        file = open_tensor_file(path)
        self.log = json.loads(file.metadata["log"])
        arrays = file.map()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                key = f"parameter.{name}"
                if key not in arrays or arrays[key].shape != tuple(parameter.shape):
                    raise InputError(f"{path}: not a checkpoint of this run")
                parameter.copy_(torch.from_numpy(arrays[key].copy()))
        for number, optimizer in enumerate(self._optimizers):
            names = [name for group in optimizer.param_groups for name in group["names"]]
            state: dict[int, dict[str, torch.Tensor]] = {}
            for index, name in enumerate(names):
                prefix, suffix = f"optimizer.{number}.", f".{name}"
                for key, array in arrays.items():
                    if key.startswith(prefix) and key.endswith(suffix):
                        value = torch.from_numpy(array.copy())
                        slot = key[len(prefix) : -len(suffix)]
                        scalar = value.reshape(()) if slot == "step" else value
                        state.setdefault(index, {})[slot] = scalar
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.model.refresh()


def with_start(targets: torch.Tensor, start_token_id: int) -> torch.Tensor:
    """The inputs from which the targets are predicted, int64 [streams, steps]."""
    start = torch.full((len(targets), 1), start_token_id, dtype=torch.int64)
    return torch.cat([start, targets[:, :-1]], dim=1)


def common_blocks(
    model: FloatLlama, teacher: FloatLlama, trained: Mapping[str, torch.Tensor]
) -> int:
    """How many blocks from the first on are the teacher's own and stay so, embedding included."""

    def common(name: str) -> bool:
        mine = any(other == name or other.startswith(f"{name}.") for other in trained)
        return not mine and torch.equal(model.weights[name], teacher.weights[name])

    if not common("embed"):
        return 0
    count = 0
    for layer in range(min(model.config.layers, teacher.config.layers)):
        names = [name for name in model.weights if name.startswith(f"layers.{layer}.")]
        windows = [own.windows.of_layer(own.config, layer) for own in (model, teacher)]
        if windows[0] != windows[1] or not all(map(common, names)):
            break
        count += 1
    return count


def trained_parameters(model: FloatLlama, settings: TrainSettings) -> dict[str, torch.Tensor]:
    """What these settings train, by name; the model computes with it from now on.

    Raises:
        UsageError: the settings name a layer that the model does not have.
    """
    layers = range(model.config.layers) if settings.layers is None else settings.layers
    if not all(0 <= layer < model.config.layers for layer in layers):
        raise UsageError(f"the model has layers 0 to {model.config.layers - 1}")
    matrices = [
        f"layers.{layer}.{kind}"
        for layer in layers
        for kind in MATRICES
        if kind in settings.targets
    ]
    others = []
    if "norms" in settings.targets:
        others += [f"layers.{layer}.{kind}" for layer in layers for kind in ("norm1", "norm2")]
        others.append("norm")
    if "embed" in settings.targets:
        others += ["embed"] if model.config.tied else ["embed", "head"]
    if not settings.rank:
        return model.train_weights([*matrices, *others])
    generator = torch.Generator().manual_seed(settings.seed)
    halves = model.train_adapters(matrices, rank=settings.rank, scale=2.0, generator=generator)
    return {**halves, **model.train_weights(others)}


def _optimizers(
    parameters: Mapping[str, torch.Tensor], settings: TrainSettings
) -> list[torch.optim.Optimizer]:
    """The optimizers that share the parameters; each group also holds its parameters' names."""
    by_muon = [
        name
        for name, parameter in parameters.items()
        if settings.optimizer == "muon" and parameter.ndim == 2 and name not in ("embed", "head")
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if by_muon:
        group = {"params": [parameters[name] for name in by_muon], "names": by_muon}
        optimizers.append(
            torch.optim.Muon([group], lr=settings.rate, weight_decay=settings.decay,
                             adjust_lr_fn="match_rms_adamw")
        )  # fmt: skip
    rest = [name for name in parameters if name not in by_muon]
    if rest:
        # Gains stand at 1; pulling them to 0 would be a change of its own.
        for names, decay in (
            ([name for name in rest if parameters[name].ndim == 2], settings.decay),
            ([name for name in rest if parameters[name].ndim == 1], 0.0),
        ):
            if names:
                group = {"params": [parameters[n] for n in names], "names": names}
                optimizers.append(
                    torch.optim.AdamW([group], lr=settings.rate, betas=(0.9, 0.98),
                                      weight_decay=decay)
                )  # fmt: skip
    return optimizers


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The run's checkpoints by step, the latest last."""
    found = []
    for path in folder.iterdir():
        match = _CHECKPOINT.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in one step."""
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)

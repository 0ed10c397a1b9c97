"""`llmzip model tune`: a run folder, set up once and gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from archiver.errors import UsageError
from archiver.workshop.corpus import Mixture, Tokens, tokenize
from archiver.workshop.llama import FloatLlama
from archiver.workshop.settings import TrainSettings
from archiver.workshop.training import Trainer, write_json

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """When and on how much held-out text a run is measured; changes nothing of its result."""

    every: int = 100
    windows: int = 1
    tokens: int = 1024


def open_run(
    folder: Path,
    base: SourceModel,
    mixture: Mixture,
    roots: Mapping[str, Path],
    settings: TrainSettings,
    *,
    measuring: Measuring,
    threads: int | None = None,
) -> Trainer:
    """A run in its folder: fresh, or as its last checkpoint left it.

    Raises:
        UsageError: the folder holds another run. InputError: text or checkpoint are not right.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    folder.mkdir(parents=True, exist_ok=True)
    found = _claim(folder, base, mixture, settings)
    tokens = Tokens(base)
    trainer = Trainer(
        folder=folder,
        model=FloatLlama.from_source(base),
        corpus=tokenize(mixture, roots, tokens, folder / "corpus.safetensors"),
        tokens=tokens,
        settings=settings,
        start_token_id=base.start_token_id,
        eval_every=measuring.every,
        eval_windows=measuring.windows,
        eval_tokens=measuring.tokens,
    )
    first = min(found, settings.cooldown_start)
    if found != settings.cooldown_start and trainer.step > first:
        raise UsageError(f"{folder}: the rate falls since step {first}; --steps is settled")
    return trainer


def _claim(folder: Path, base: SourceModel, mixture: Mixture, settings: TrainSettings) -> int:
    """Write down what the run is, or check that it is the same; return its old cool-down start.

    Only the number of steps may change: a run at a level rate can become longer or shorter.
    """
    run = {"base": base.name, "mixture_sha256": mixture.sha256, "settings": settings.as_dict()}
    path = folder / "settings.json"
    start = settings.cooldown_start
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        old, new = _flat(found), _flat(run)
        differ = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        if differ - {"steps"}:
            raise UsageError(f"{folder} holds another run (differs in {', '.join(sorted(differ))})")
        cooldown = settings.cooldown
        start = settings.warmup if cooldown is None else max(0, old["steps"] - cooldown)
    write_json(path, run)
    return start


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in run.items() if key != "settings"}, **run["settings"]}

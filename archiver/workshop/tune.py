"""Runs of `tune` and `heal`: a folder, set up once, gone on with, and finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from archiver.errors import UsageError
from archiver.workshop.compact import compact_adapter
from archiver.workshop.corpus import Corpus, Mixture, Tokens, tokenize
from archiver.workshop.llama import FloatLlama, separate_weights
from archiver.workshop.reshape import with_weights
from archiver.workshop.settings import TrainSettings
from archiver.workshop.training import Trainer, write_json
from archiver.workshop.writing import write_text

if TYPE_CHECKING:
    from archiver.predict.adapter import Adapter
    from archiver.predict.sources import SourceModel
    from archiver.types import Int64Array

WRITTEN_FILE = "written.safetensors"
WRITTEN_TEXTS, OPENING_TOKENS = 64, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """When and on how much held-out text a run is measured; changes nothing of its result."""

    every: int = 100
    windows: int = 1
    tokens: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A run: what it starts from, and the trainer that takes its steps."""

    base: SourceModel
    trainer: Trainer

    def adapter(
        self, budget_bytes: int, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Adapter:
        """The trained adapters as a small file's content."""
        return compact_adapter(
            self.trainer.model,
            self.base,
            history=(self._step(),),
            budget_bytes=budget_bytes,
            progress=progress,
        )

    def model(self) -> SourceModel:
        """The trained model, adapters merged."""
        model = self.trainer.model
        weights = {name: model.merged(name) for name in model.weights}
        return with_weights(self.base, separate_weights(model.config, weights), self._step())

    def _step(self) -> str:
        """The line of the history that says what this run did."""
        trainer, settings = self.trainer, self.trainer.settings
        measured = [entry for entry in trainer.log if "held_out_bpb" in entry]
        tokens = sum(entry.get("tokens", 0) for entry in trainer.log)
        how = f"LoRA rank {settings.rank}" if settings.rank else "all weights"
        teacher = f", teacher {settings.teacher_share:g}" if trainer.teacher else ""
        return (
            f"{'healed' if trainer.teacher else 'tuned'}: {how}, {settings.optimizer} "
            f"{settings.rate:g}, {trainer.step} steps, {tokens} tokens, seed {settings.seed}"
            f"{teacher}, text {trainer.corpus.mixture.sha256[:16]}, held-out "
            f"{measured[0]['held_out_bpb']:.4f} -> {measured[-1]['held_out_bpb']:.4f} bpb"
        )


def open_run(
    folder: Path,
    base: SourceModel,
    mixture: Mixture,
    roots: Mapping[str, Path],
    settings: TrainSettings,
    *,
    measuring: Measuring,
    threads: int | None = None,
    teacher: SourceModel | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Run:
    """A run in its folder: fresh, or as its last checkpoint left it.

    Args:
        teacher: the model to learn from, with the same vocabulary.
        progress: of the text that the teacher writes, where the settings ask for it.

    Raises:
        UsageError: the folder holds another run, or the models do not fit each other.
        InputError: text or checkpoint are not right.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # gradients get there, and denormal numbers are slow
    if teacher is not None and teacher.token_bytes != base.token_bytes:
        raise UsageError("teacher and student have different vocabularies")
    folder.mkdir(parents=True, exist_ok=True)
    start = _claim(folder, base, teacher, mixture, settings)
    tokens = Tokens(base)
    corpus = tokenize(mixture, roots, tokens, folder / "corpus.safetensors")
    guide = None if teacher is None else FloatLlama.from_source(teacher)
    written = None
    if guide is not None and settings.written_share:
        written = _written(folder, guide, corpus, settings, base.start_token_id, progress)
    trainer = Trainer(
        folder=folder,
        model=FloatLlama.from_source(base),
        corpus=corpus,
        tokens=tokens,
        settings=settings,
        start_token_id=base.start_token_id,
        teacher=guide,
        written=written,
        eval_every=measuring.every,
        eval_windows=measuring.windows,
        eval_tokens=measuring.tokens,
    )
    first = min(start, settings.cooldown_start)
    if start != settings.cooldown_start and trainer.step > first:
        raise UsageError(f"{folder}: the rate falls since step {first}; --steps is settled")
    return Run(base=base, trainer=trainer)


def _written(
    folder: Path,
    teacher: FloatLlama,
    corpus: Corpus,
    settings: TrainSettings,
    start_token_id: int,
    progress: Callable[[int, int], None],
) -> Int64Array:
    """What the teacher writes after a few tokens of the training text, kept in the folder."""
    from archiver.predict.tensor_file import open_tensor_file, write_tensor_file

    path = folder / WRITTEN_FILE
    if not path.is_file():
        opening = corpus.batch(settings.seed, settings.steps, WRITTEN_TEXTS, OPENING_TOKENS)
        texts = write_text(
            teacher,
            opening,
            max(settings.sequences),
            start_token_id=start_token_id,
            seed=settings.seed,
            progress=progress,
        )
        fresh = path.with_suffix(".part")
        write_tensor_file(fresh, {"texts": texts}, {})
        fresh.replace(path)
    written: Int64Array = open_tensor_file(path).map()["texts"].astype("int64")
    return written


def _claim(
    folder: Path,
    base: SourceModel,
    teacher: SourceModel | None,
    mixture: Mixture,
    settings: TrainSettings,
) -> int:
    """Write down what the run is, or check that it is the same; return its old cool-down start.

    Only the number of steps may change: a run at a level rate can become longer or shorter.
    """
    run = {
        "base": list(base.history),
        "teacher": None if teacher is None else list(teacher.history),
        "mixture_sha256": mixture.sha256,
        "settings": settings.as_dict(),
    }
    path = folder / "settings.json"
    start = settings.cooldown_start
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        old, new = _flat(found), _flat(run)
        differ = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        if differ - {"steps"}:
            shown = ", ".join(sorted(differ - {"steps"}))
            raise UsageError(f"{folder} holds another run (differs in {shown})")
        cooldown = settings.cooldown
        start = settings.warmup if cooldown is None else max(0, old["steps"] - cooldown)
    write_json(path, run)
    return start


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in run.items() if key != "settings"}, **run["settings"]}

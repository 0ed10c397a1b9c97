"""The commands `llmzip model tune`, `prune`, `quantize`, `heal` and `export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from archiver.commands.arguments import reporting_options
from archiver.commands.console import Reporter
from archiver.errors import UsageError


class Numbers(click.ParamType):
    """Whole numbers separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Parse the option."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 3,4,5", param, ctx)


class Words(click.ParamType):
    """Words separated by commas."""

    name = "words"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Parse the option."""
        return value if isinstance(value, tuple) else tuple(value.split(","))


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that tune and heal share."""
    for option in reversed(
        (
            click.option("--steps", type=int, required=True, help="Optimizer steps in all."),
            click.option("--batch-tokens", type=int, default=4096, show_default=True,
                         help="Tokens of a step."),
            click.option("--sequence", type=Numbers(), default="512,512,512,2048",
                         show_default=True, help="Window lengths in tokens, taken in turn."),
            click.option("--rank", type=int, default=16, show_default=True,
                         help="Of the low-rank adapters; 0 trains all weights."),
            click.option("--targets", type=Words(), default="qkv,o,gate_up,down,norms",
                         show_default=True, help="What is trained."),
            click.option("--train-layers", type=Numbers(), help="Blocks to train [default: all]."),
            click.option("--optimizer", type=click.Choice(("adamw", "muon")), default="adamw",
                         show_default=True),
            click.option("--rate", type=float, default=5e-4, show_default=True,
                         help="Highest learning rate."),
            click.option("--warmup", type=int, default=20, show_default=True,
                         help="Steps until that rate."),
            click.option("--cooldown", type=int, metavar="STEPS",
                         help="Over how many last steps the rate falls [default: all]."),
            click.option("--decay", type=float, default=0.0, show_default=True,
                         help="Weight decay."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--time-limit", type=float, metavar="SECONDS",
                         help="Stop then; the same command goes on later."),
            click.option("--save-every", type=float, default=300.0, show_default=True,
                         metavar="SECONDS", help="Between checkpoints."),
            click.option("--eval-every", type=int, default=100, show_default=True,
                         metavar="STEPS", help="Between measurements on held-out text."),
            click.option("--eval-windows", type=int, default=1, show_default=True,
                         help="Held-out windows of each source."),
            click.option("--eval-tokens", type=int, default=1024, show_default=True,
                         help="Their length."),
            click.option("-T", "--threads", type=int, help="Threads [default: torch's]."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


text_options = click.option(
    "--root", "roots", multiple=True, metavar="NAME=DIR",
    help="Folder that paths NAME:... of a mixture start from.",
)  # fmt: skip


@click.command("tune")
@click.argument("base")
@click.argument("text", type=click.Path(path_type=Path))
@click.option("--run", "run_folder", type=click.Path(path_type=Path), required=True,
              help="Folder of the run: settings, checkpoints, log, result.")  # fmt: skip
@text_options
@training_options
@reporting_options
def tune(base: str, text: Path, run_folder: Path, roots: tuple[str, ...], **options: Any) -> None:
    """Train BASE (a GGUF file, a folder or a known name) on TEXT, a file or a mixture.toml.

    The run folder holds checkpoints: the same command goes on where the last one stopped.

    \b
    Example:
      llmzip model tune default notes.txt --run my-run --steps 200
    """
    from archiver.workshop.base import open_base
    from archiver.workshop.corpus import parse_roots, read_mixture, single_file_mixture
    from archiver.workshop.tune import Measuring, open_run

    reporter = Reporter(quiet=options["quiet"], verbose=options["verbose"])
    if text.suffix == ".toml":
        mixture, folders = read_mixture(text), parse_roots(roots)
    else:
        mixture, folders = single_file_mixture(text)
    with reporter.stages() as stages:
        trainer = open_run(
            run_folder, open_base(base, stages), mixture, folders, _settings(options),
            measuring=Measuring(every=options["eval_every"], windows=options["eval_windows"],
                                tokens=options["eval_tokens"]),
            threads=options["threads"],
        )  # fmt: skip
    _train(reporter, trainer, options)


def _settings(options: dict[str, Any], **others: Any) -> Any:
    from archiver.workshop.settings import TrainSettings

    return TrainSettings(
        steps=options["steps"], batch_tokens=options["batch_tokens"],
        sequences=options["sequence"], rank=options["rank"], targets=options["targets"],
        layers=options["train_layers"], optimizer=options["optimizer"], rate=options["rate"],
        warmup=options["warmup"], cooldown=options["cooldown"], decay=options["decay"], seed=options["seed"], **others,
    )  # fmt: skip


def _train(reporter: Reporter, trainer: Any, options: dict[str, Any]) -> None:
    """Run a trainer, with a bar of steps on a terminal."""
    if options["time_limit"] is not None and options["time_limit"] <= 0:
        raise UsageError("--time-limit has to be positive")
    with reporter.steps("training", trainer.settings.steps, trainer.step) as show:
        trainer.run(
            time_limit_s=options["time_limit"],
            save_every_s=options["save_every"],
            progress=lambda step, steps, loss: show(step, f"{loss:.3f} bits a token"),
        )
    measured = [entry for entry in trainer.log if "held_out_bpb" in entry]
    for entry in measured[:1] + measured[-1:] if len(measured) > 1 else measured:
        reporter.say(f"step {entry['step']}: held-out {entry['held_out_bpb']:.4f} bpb")
    if not trainer.done:
        reporter.say(
            f"{trainer.step} of {trainer.settings.steps} steps; the same command goes on"
        )

"""The commands `llmzip model tune` and `heal`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archiver.commands.arguments import option_group, reporting_options
from archiver.commands.console import Reporter
from archiver.commands.workshop_options import Numbers, Words, name_option, threads_option
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.workshop.settings import TrainSettings
    from archiver.workshop.tune import Run


_training_options = option_group(
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
    threads_option,
)  # fmt: skip


_text_options = click.option(
    "--root", "roots", multiple=True, metavar="NAME=DIR",
    help="Folder that paths NAME:... of a mixture start from.",
)  # fmt: skip


_finish_options = option_group(
    click.option(
        "--finish", is_flag=True,
        help="Train no further: make the result of the last checkpoint.",
    ),
    click.option(
        "--adapter-bytes", type=int, default=3_000_000, show_default=True,
        help="Largest size of the adapter file.",
    ),
    name_option,
)  # fmt: skip


@click.command("tune")
@click.argument("base")
@click.argument("text", type=click.Path(path_type=Path))
@click.option("--run", "run_folder", type=click.Path(path_type=Path), required=True,
              help="Folder of the run: settings, checkpoints, log, result.")  # fmt: skip
@_text_options
@_training_options
@_finish_options
@reporting_options
def tune(base: str, text: Path, run_folder: Path, roots: tuple[str, ...], **options: Any) -> None:
    """Train BASE (a GGUF file, a folder or a known name) on TEXT, a file or a mixture.toml.

    The run folder holds checkpoints: the same command goes on where the last one stopped. After
    the last step it holds adapter.safetensors (with --rank 0 the folder model) for `model add`.

    \b
    Examples:
      llmzip model tune default notes.txt --run my-run --steps 200 --name mine
      llmzip model add base.gguf --adapter my-run/adapter.safetensors --name mine
    """
    reporter = Reporter(quiet=options["quiet"], verbose=options["verbose"])
    _run(reporter, base, None, text, run_folder, roots, _settings(options), options)


@click.command("heal")
@click.argument("student")
@click.argument("teacher")
@click.argument("text", type=click.Path(path_type=Path))
@click.option("--run", "run_folder", type=click.Path(path_type=Path), required=True,
              help="Folder of the run: settings, checkpoints, log, result.")  # fmt: skip
@click.option(
    "--teacher-share",
    type=float,
    default=1.0,
    show_default=True,
    help="Of the loss, how much is the teacher's distribution; the rest is the text.",
)
@click.option(
    "--written-share",
    type=float,
    default=0.0,
    show_default=True,
    help="Of the batches, how many are text that the teacher writes itself.",
)
@_text_options
@_training_options
@_finish_options
@reporting_options
def heal(
    student: str, teacher: str, text: Path, run_folder: Path, roots: tuple[str, ...],
    **options: Any,
) -> None:  # fmt: skip
    """Train STUDENT, a pruned or quantized model, to predict what TEACHER predicts on TEXT.

    Works in pieces like tune. After the last step the run folder holds the folder model, with
    adapters merged.

    \b
    Example:
      llmzip model heal pruned default notes.txt --run healing --steps 40 --rank 0 --rate 2e-4
    """
    reporter = Reporter(quiet=options["quiet"], verbose=options["verbose"])
    settings = _settings(
        options,
        teacher_share=options["teacher_share"],
        written_share=options["written_share"],
    )
    _run(reporter, student, teacher, text, run_folder, roots, settings, options)


def _settings(options: dict[str, Any], **others: Any) -> TrainSettings:
    from archiver.workshop.settings import TrainSettings

    return TrainSettings(
        steps=options["steps"], batch_tokens=options["batch_tokens"],
        sequences=options["sequence"], rank=options["rank"], targets=options["targets"],
        layers=options["train_layers"], optimizer=options["optimizer"], rate=options["rate"],
        warmup=options["warmup"], cooldown=options["cooldown"], decay=options["decay"],
        seed=options["seed"], **others,
    )  # fmt: skip


def _run(
    reporter: Reporter, base: str, teacher: str | None, text: Path, folder: Path,
    roots: tuple[str, ...], settings: TrainSettings, options: dict[str, Any],
) -> None:  # fmt: skip
    """Open a run, take steps, and make the result once all are taken."""
    from archiver.workshop.base import open_base
    from archiver.workshop.corpus import parse_roots, read_mixture, single_file_mixture
    from archiver.workshop.tune import Measuring, open_run

    limit_s = options["time_limit"]
    if limit_s is not None and limit_s <= 0:
        raise UsageError("--time-limit has to be positive")
    if text.suffix == ".toml":
        mixture, folders = read_mixture(text), parse_roots(roots)
    else:
        mixture, folders = single_file_mixture(text)
    with reporter.stages() as stages:
        run = open_run(
            folder, open_base(base, stages), mixture, folders, settings,
            measuring=Measuring(every=options["eval_every"], windows=options["eval_windows"],
                                tokens=options["eval_tokens"]),
            threads=options["threads"],
            teacher=None if teacher is None else open_base(teacher, stages),
            progress=lambda done, total: stages("writing text", done, total),
        )  # fmt: skip
    trainer = run.trainer
    if not options["finish"]:
        with reporter.steps("training", settings.steps, trainer.step) as show:
            trainer.run(
                time_limit_s=limit_s,
                save_every_s=options["save_every"],
                progress=lambda step, steps, loss: show(step, f"{loss:.3f} bits a token"),
            )
    measured = [entry for entry in trainer.log if "held_out_bpb" in entry]
    for entry in [measured[0], measured[-1]] if len(measured) > 1 else measured:
        reporter.say(f"step {entry['step']}: held-out {entry['held_out_bpb']:.4f} bpb")
    if not (trainer.done or options["finish"]):
        reporter.say(f"{trainer.step} of {settings.steps} steps; the same command goes on")
        return
    _finish(reporter, run, folder, adapter=teacher is None and settings.rank > 0, options=options)


def _finish(
    reporter: Reporter, run: Run, folder: Path, *, adapter: bool, options: dict[str, Any]
) -> None:
    """Write the result of a run into its folder, and make a package where a name is given."""
    from archiver.predict import registry
    from archiver.predict.adapter import apply_adapter, read_adapter, write_adapter
    from archiver.workshop.base import store_result

    name = options["name"]
    with reporter.stages() as stages:
        if not adapter:
            target = folder / "model"
            if target.exists() and options["finish"]:
                shutil.rmtree(target)
            store_result(target, run.model(), name=name, progress=stages)
            reporter.say(f"{target}: written")
            return
        target = folder / "adapter.safetensors"
        made = run.adapter(
            options["adapter_bytes"], lambda done, total: stages("packing", done, total)
        )
        write_adapter(target, made)
        reporter.say(f"{target}: {target.stat().st_size:,} bytes")
        if name is not None:
            tuned = apply_adapter(run.base, read_adapter(target))
            package = registry.add_source(tuned, name, stages)
            reporter.say(f"{name}: ready, fingerprint {package.fingerprint[:16]}")

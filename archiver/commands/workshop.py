"""The commands `llmzip model tune`, `prune`, `localize`, `quantize`, `heal` and `export`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archiver.commands.arguments import reporting_options
from archiver.commands.console import Reporter
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel
    from archiver.workshop.calibration import Calibration
    from archiver.workshop.settings import TrainSettings
    from archiver.workshop.tune import Run


class Numbers(click.ParamType):  # type: ignore[type-arg]
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


class Words(click.ParamType):  # type: ignore[type-arg]
    """Words separated by commas."""

    name = "words"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Parse the option."""
        return value if isinstance(value, tuple) else tuple(value.split(","))


_threads_option = click.option("-T", "--threads", type=int, help="Threads [default: torch's].")


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
            _threads_option,
        )
    ):  # fmt: skip
        command = option(command)
    return command


text_options = click.option(
    "--root", "roots", multiple=True, metavar="NAME=DIR",
    help="Folder that paths NAME:... of a mixture start from.",
)  # fmt: skip


_name_option = click.option(
    "--name", help="Make a package of the result, of this name, to use with -m."
)


def calibration_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that look at a calibration text."""
    for option in reversed(
        (
            click.option("--calibrate", type=click.Path(path_type=Path), metavar="FILE",
                         help="Text to calibrate on [default: one of ours]."),
            click.option("--windows", type=int, default=64, show_default=True,
                         help="How many windows of it."),
            click.option("--window-tokens", type=int, default=256, show_default=True,
                         help="Their length."),
            _threads_option,
        )
    ):  # fmt: skip
        command = option(command)
    return command


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the result goes."""
    command = _name_option(command)
    return click.option(
        "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
        help="Folder for the new weights; `model add` and every command here read it.",
    )(command)  # fmt: skip


def finish_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What becomes of a run."""
    command = _name_option(command)
    command = click.option(
        "--adapter-bytes", type=int, default=3_000_000, show_default=True,
        help="Largest size of the adapter file.",
    )(command)  # fmt: skip
    return click.option(
        "--finish", is_flag=True,
        help="Train no further: make the result of the last checkpoint.",
    )(command)  # fmt: skip


@click.command("tune")
@click.argument("base")
@click.argument("text", type=click.Path(path_type=Path))
@click.option("--run", "run_folder", type=click.Path(path_type=Path), required=True,
              help="Folder of the run: settings, checkpoints, log, result.")  # fmt: skip
@text_options
@training_options
@finish_options
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
@text_options
@training_options
@finish_options
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


@click.command("prune")
@click.argument("base")
@click.option("--layers", type=int, metavar="N", help="Remove N blocks, chosen by --by.")
@click.option(
    "--by",
    type=click.Choice(("distance", "bits")),
    default="distance",
    show_default=True,
    help="Angular distance of a run of blocks, or bits without each.",
)
@click.option("--remove", type=Numbers(), help="Remove these blocks, counted from 0.")
@click.option("--channels", type=int, metavar="N", help="Keep N feed-forward channels a block.")
@click.option("--heads", type=int, metavar="N", help="Keep N query heads a block.")
@click.option(
    "--smallest", type=float, metavar="SHARE", help="Set that share of every row's weights to zero."
)
@click.option(
    "--weigh-inputs",
    is_flag=True,
    help="With --smallest: judge weights by their inputs too (Wanda).",
)
@calibration_options
@output_options
@reporting_options
def prune(base: str, output: Path, name: str | None, **options: Any) -> None:
    """Write BASE without some blocks, channels, heads or weights to a folder.

    The folder's prune.json holds what was measured, mergekit.yaml the kept blocks.

    \b
    Examples:
      llmzip model prune default --layers 4 -o pruned --name small
      llmzip model prune default --layers 4 --by bits -o pruned
    """
    from archiver.workshop.base import open_base, store_result
    from archiver.workshop.prune import Pruning, prune_model

    reporter = Reporter(quiet=options["quiet"], verbose=options["verbose"])
    plan = Pruning(
        layers=options["layers"], by=options["by"], remove=options["remove"],
        channels=options["channels"], heads=options["heads"], smallest=options["smallest"],
        weigh_inputs=options["weigh_inputs"],
    )  # fmt: skip
    with reporter.stages() as stages:
        source = open_base(base, stages)
        calibration = _calibration(source, options)
        result, report = prune_model(
            source, plan, calibration, lambda done, total: stages("measuring", done, total)
        )
        store_result(output, result, name=name, progress=stages)
    report.write(output)
    for line in report.lines():
        reporter.say(line)
    reporter.say(f"{output}: written")


@click.command("localize")
@click.argument("base")
@click.option("--heads", type=int, metavar="N", help="Mark the N cheapest key/value heads local.")
@click.option(
    "--span",
    type=int,
    default=512,
    show_default=True,
    metavar="TOKENS",
    help="What a head would see, besides the first tokens of a stream.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Text to measure on; several count alike [default: one of ours].",
)
@click.option(
    "--windows", type=int, default=8, show_default=True, help="How many windows of each text."
)
@click.option("--window-tokens", type=int, default=2048, show_default=True, help="Their length.")
@_threads_option
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Folder for the marked weights, and localize.json.")  # fmt: skip
@_name_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@reporting_options
def localize(
    base: str, heads: int | None, output: Path | None, name: str | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Measure what each key/value head of BASE loses when it sees the last tokens only.

    With --heads the cheapest are marked: the engine lets them look back less far, which makes
    decoding faster. The measure is an estimate by derivatives, for each head alone.

    \b
    Examples:
      llmzip model localize default
      llmzip model localize pruned --heads 60 --calibrate a.txt --calibrate b.py -o marked
    """
    from archiver.predict import registry
    from archiver.workshop.base import open_base, store_result
    from archiver.workshop.localize import check_count, localized, measure_heads

    reporter = Reporter(quiet=options["quiet"], verbose=options["verbose"])
    if heads is None and (output or name):
        raise UsageError("-o and --name need --heads: which are to be local")
    with reporter.stages() as stages:
        source = open_base(base, stages)
        if heads is not None:
            check_count(source.config, heads)
        texts = options["calibrate"] or (None,)
        costs = measure_heads(
            source,
            [_calibration(source, {**options, "calibrate": text}) for text in texts],
            options["span"],
            lambda done, total: stages("measuring", done, total),
        )
        marks = None if heads is None else costs.cheapest(heads)
        if marks is not None and output is not None:
            store_result(output, localized(source, costs, marks), name=name, progress=stages)
            costs.write(output, marks)
        elif marks is not None and name is not None:
            registry.add_source(localized(source, costs, marks), name, stages)
    if as_json:
        click.echo(json.dumps(costs.as_dict(marks)))
    else:
        for line in costs.lines(marks):
            click.echo(line)
    if output is not None:
        reporter.say(f"{output}: written")


@click.command("quantize")
@click.argument("base")
@click.option(
    "--method",
    type=click.Choice(("rtn", "nf4", "gptq")),
    required=True,
    help="Round to nearest, NF4 with double quantization, or GPTQ.",
)
@click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True)
@click.option(
    "--group", type=int, default=64, show_default=True, help="Weights of a row that share a scale."
)
@click.option("--symmetric", is_flag=True, help="No minimum beside the scale.")
@click.option(
    "--search/--no-search",
    default=True,
    show_default=True,
    help="Choose every group's range for the least error (rtn).",
)
@click.option(
    "--head-bits",
    type=click.IntRange(2, 8),
    default=8,
    show_default=True,
    help="Of embedding and head, rounded to nearest.",
)
@click.option("--head-group", type=int, metavar="N", help="Their group [default: a whole row].")
@click.option("--damping", type=float, default=0.01, show_default=True, help="Of GPTQ.")
@click.option(
    "--act-order/--no-act-order",
    default=True,
    show_default=True,
    help="GPTQ: columns with the largest inputs first.",
)
@calibration_options
@output_options
@reporting_options
def quantize(base: str, output: Path, name: str | None, **options: Any) -> None:
    """Write BASE with fewer bits a weight to a folder, packed.

    \b
    Examples:
      llmzip model quantize default --method gptq --bits 3 -o q3 --name q3
      llmzip model quantize default --method rtn --bits 4 --group 32 --no-search -o q4
    """
    from archiver.predict.packed import Packing
    from archiver.workshop.base import open_base, store_result
    from archiver.workshop.quantize import Quantizing, quantize_source

    reporter = Reporter(quiet=options["quiet"], verbose=options["verbose"])
    method = options["method"]
    kind = "nf4" if method == "nf4" else "symmetric" if options["symmetric"] else "grid"
    with reporter.stages() as stages:
        source = open_base(base, stages)
        plan = Quantizing(
            method=method,
            packing=Packing(method=kind, bits=4 if method == "nf4" else options["bits"],
                            group=options["group"]),
            head=Packing(method="symmetric", bits=options["head_bits"],
                         group=options["head_group"] or source.config.hidden),
            search=options["search"], damping=options["damping"],
            by_activation=options["act_order"],
        )  # fmt: skip
        calibration = _calibration(source, options) if plan.needs_calibration else None
        result, packed, report = quantize_source(
            source, plan, calibration, lambda done, total: stages("quantizing", done, total)
        )
        store_result(output, result, packed, name=name, progress=stages)
    reporter.say(
        f"{output}: {report.bits_a_weight:.3f} bits a weight in the blocks, "
        f"{report.all_bytes:,} bytes of weights in all"
    )


def _calibration(source: SourceModel, options: dict[str, Any]) -> Calibration:
    import torch

    from archiver.workshop.calibration import read_calibration

    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    return read_calibration(
        source, options["calibrate"], windows=options["windows"], steps=options["window_tokens"]
    )


@click.command("export")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(("package", "hf")),
    default="package",
    show_default=True,
    help="A package for `model add`, or what transformers reads.",
)
@reporting_options
def export(model: str, folder: Path, kind: str, quiet: bool, verbose: int) -> None:
    """Write MODEL to FOLDER for another machine, or for other programs.

    With --format package MODEL is any model of `model list`; with --format hf it is a GGUF file, a
    folder of weights, or a model that can be pulled.

    \b
    Examples:
      llmzip model export mine mine-package
      llmzip model export pruned pruned-hf --format hf
    """
    reporter = Reporter(quiet=quiet, verbose=verbose)
    with reporter.stages() as stages:
        if kind == "hf":
            from archiver.workshop.base import open_base
            from archiver.workshop.export import write_hf_folder

            write_hf_folder(folder, open_base(model, stages))
        else:
            from archiver.predict import registry

            registry.export(model, folder, stages)
    reporter.say(f"{folder}: written")

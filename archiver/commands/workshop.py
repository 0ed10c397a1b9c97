"""The commands `llmzip model prune`, `localize`, `quantize` and `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archiver.commands.arguments import option_group, reporting_options
from archiver.commands.console import Reporter
from archiver.commands.workshop_options import Numbers, name_option, threads_option
from archiver.errors import UsageError

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel
    from archiver.workshop.calibration import Calibration


_calibration_options = option_group(
    click.option("--calibrate", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
                 help="Text to calibrate on; several get equal parts [default: one of ours]."),
    click.option("--windows", type=int, default=64, show_default=True,
                 help="How many windows, of all texts together."),
    click.option("--window-tokens", type=int, default=256, show_default=True,
                 help="Their length."),
    threads_option,
)  # fmt: skip


_output_options = option_group(
    click.option(
        "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
        help="Folder for the new weights; `model add` and every command here read it.",
    ),
    name_option,
)  # fmt: skip


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
@click.option(
    "--refit", is_flag=True, help="Fit the other blocks to what all did, by least squares."
)
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
@_calibration_options
@_output_options
@reporting_options
def prune(base: str, output: Path, name: str | None, **options: Any) -> None:
    """Write BASE without some blocks, channels, heads or weights to a folder.

    The folder's prune.json holds what was measured, mergekit.yaml the kept blocks.

    \b
    Examples:
      llmzip model prune default --layers 4 -o pruned --name small
      llmzip model prune default --layers 4 --by bits --refit --windows 256 -o pruned
    """
    from archiver.workshop.base import open_base, store_result
    from archiver.workshop.prune import Pruning, prune_model

    reporter = Reporter(quiet=options["quiet"], verbose=options["verbose"])
    plan = Pruning(
        layers=options["layers"], by=options["by"], remove=options["remove"],
        refit=options["refit"], channels=options["channels"], heads=options["heads"],
        smallest=options["smallest"], weigh_inputs=options["weigh_inputs"],
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
@threads_option
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Folder for the marked weights, and localize.json.")  # fmt: skip
@name_option
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
        texts: list[tuple[Path, ...]] = [(text,) for text in options["calibrate"]]
        costs = measure_heads(
            source,
            [_calibration(source, {**options, "calibrate": text}) for text in texts or [()]],
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
@_calibration_options
@_output_options
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

    from archiver.workshop.calibration import Calibration, read_calibration

    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    texts = options["calibrate"] or (None,)
    windows, steps = max(1, options["windows"] // len(texts)), options["window_tokens"]
    return Calibration.joined(
        [read_calibration(source, text, windows=windows, steps=steps) for text in texts]
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

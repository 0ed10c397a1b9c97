"""The commands `llmzip model ...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from archiver.commands.arguments import reporting_options
from archiver.commands.console import Reporter
from archiver.commands.workshop import export, localize, prune, quantize
from archiver.commands.workshop_training import heal, tune
from archiver.errors import UsageError
from archiver.options import DEFAULT_MODEL, ENGINES, EXACT, FLOAT

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage
    from archiver.predict.registry import ModelListing


class _ReportingGroup(click.Group):
    """Ends a command that raises one of our errors with its message and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        reporter = Reporter(quiet=False, verbose=0)
        with reporter.errors_of("model"):
            super().invoke(ctx)
        ctx.exit(reporter.exit_code)


@click.group(cls=_ReportingGroup)
def model() -> None:
    """List, fetch, add, make and remove the models that predict."""


for command in (tune, prune, localize, quantize, heal, export):
    model.add_command(command)


@model.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line and model.")
def model_list(as_json: bool) -> None:
    """List the models that are here or can be fetched."""
    from archiver.predict import registry

    for listing in registry.list_packages():
        if as_json:
            click.echo(json.dumps(_listing_fields(listing)))
        else:
            state = "here" if listing.package else listing.problem or "can be pulled"
            mark = "*" if listing.is_default else " "
            digits = (listing.fingerprint or "")[:16] or "-"
            click.echo(f"{mark} {listing.name:<28} {digits:<16}  {state}")


@model.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def model_show(name: str, as_json: bool) -> None:
    """Say what is known about the model NAME."""
    from archiver.predict import registry

    fields = _listing_fields(registry.show(name))
    if as_json:
        click.echo(json.dumps(fields))
        return
    for key, value in fields.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        click.echo(f"{key:<12} {'-' if shown in (None, '') else shown}")


@model.command("pull")
@click.argument("name", default=DEFAULT_MODEL)
@click.option("--name", "given_name", help="What to call a model of the hub [default: NAME].")
@reporting_options
def model_pull(name: str, given_name: str | None, quiet: bool, verbose: int) -> None:
    """Fetch the model NAME (by default the default model) and make it ready.

    hf:OWNER/NAME, or hf:OWNER/NAME@REVISION, fetches a repository of the Hugging Face Hub:
    safetensors only, never pickle or code. HF_TOKEN is honoured.
    """
    from archiver.codec.first_use import compile_all
    from archiver.predict import hub, registry

    reporter = Reporter(quiet=quiet, verbose=verbose)
    with reporter.stages() as stages:
        if hub.is_hub_address(name):
            package = registry.add(name, given_name, stages)
            name = given_name or package.name
        elif given_name is not None:
            raise UsageError(f"{name!r} is not of the hub, and has its name already")
        else:
            package = registry.pull(name, stages)
        compile_all(package, stages)
    reporter.say(f"{name}: ready, fingerprint {package.fingerprint[:16]}")


@model.command("add")
@click.argument("path", type=click.Path())
@click.option("--name", help="What to call it [default: from its own name].")
@click.option("--adapter", type=click.Path(), help="A file made by `model tune` for this model.")
@click.option(
    "--engine", type=click.Choice(ENGINES), default=EXACT, show_default=True,
    help="float: note where the folder PATH is, for archives of `compress --engine float`.",
)  # fmt: skip
@reporting_options
def model_add(
    path: str, name: str | None, adapter: str | None, engine: str, quiet: bool, verbose: int
) -> None:
    """Add the model at PATH: a GGUF file, a Hugging Face folder, or what the workshop wrote.

    PATH may also be hf:OWNER/NAME[@REVISION], as for `model pull`.
    """
    from archiver.predict import float_models, registry

    reporter = Reporter(quiet=quiet, verbose=verbose)
    if engine == FLOAT:
        if name is not None or adapter is not None:
            raise UsageError("a folder of the float engine has neither name nor adapter")
        model = float_models.remember(Path(path))
        reporter.say(f"{path}: noted, hash {model.fingerprint[:16]}")
        return
    with reporter.stages() as stages:
        package = registry.add(path, name, stages, adapter=adapter)
    reporter.say(f"{name or package.name}: ready, fingerprint {package.fingerprint[:16]}")


@model.command("remove")
@click.argument("name")
@reporting_options
def model_remove(name: str, quiet: bool, verbose: int) -> None:
    """Remove the model NAME from this machine."""
    from archiver.predict import registry

    reporter = Reporter(quiet=quiet, verbose=verbose)
    registry.remove(name)
    reporter.say(f"{name}: removed")


def _listing_fields(listing: ModelListing) -> dict[str, Any]:
    package = listing.package
    return {
        "name": listing.name,
        "names": list(listing.names),
        "default": listing.is_default,
        "fingerprint": listing.fingerprint,
        "description": listing.description,
        "licence": listing.licence,
        "path": None if package is None else str(package.path),
        "layers": None if package is None else package.config["layers"],
        "parameters": None if package is None else _parameters(package),
        "bytes": None if package is None else package.array_bytes,
        "history": None if package is None else list(package.history),
        "problem": listing.problem,
    }


def _parameters(package: ModelPackage) -> int:
    """How many weights the package holds; embedding and head count twice where they were one."""
    return sum(array.size for name, array in package.arrays.items() if name.endswith(".codes"))

"""Options that several commands of the workshop share."""

from __future__ import annotations

from typing import Any

import click


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


threads_option = click.option("-T", "--threads", type=int, help="Threads [default: torch's].")

name_option = click.option(
    "--name", help="Make a package of the result, of this name, to use with -m."
)

"""The ``volspike`` command: one module per command in ``infra/commands``, found by its name.

Exit codes: 0 done, 1 it ran and the answer is no (or an input, a store or the data stood in the way), 2 the call was
wrong, 130 after Ctrl-C. Errors of our own are printed as one line on standard error; anything else is a bug and shows
its traceback.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules

import click
import typer

from feature_repo.errors import VolspikeError
from infra import commands

ORDER = (
    "demo up exchange ingest validate featurize score outcomes replay materialize label split train tune evaluate audit "
    "promote rollback infer export reproduce predict drift report schedule bench doctor clean"
).split()
"""Order of the commands in the help: the order in which the work is done."""


def build() -> typer.Typer:
    """Assemble the application from the modules in ``infra/commands``; each has a function ``command``."""
    app = typer.Typer(
        name="volspike",
        help="How likely is a volatility spike in the next 60 seconds? From tape to served, monitored forecasts.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    there = {module.name for module in iter_modules(commands.__path__)}
    for name in (n for n in ORDER if n in there):
        app.command(name)(import_module(f"infra.commands.{name}").command)
    return app


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit.

    Raises
    ------
    SystemExit
        Always, with the code described in the module's docstring.
    """
    try:
        code = build()(args=args, standalone_mode=False)
    except VolspikeError as error:
        print(f"volspike: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("volspike: interrupted; what was committed is kept", file=sys.stderr)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)

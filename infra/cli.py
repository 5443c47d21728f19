"""The ``volspike`` command: one module per command in ``infra/commands``, found by its name.

Exit codes: 0 done, 1 it ran and the answer is no (or an input, a store or the data stood in the way), 2 the call was
wrong, 130 after Ctrl-C, 143 after SIGTERM. Errors of our own are printed as one line on standard error; anything else
is a bug and shows its traceback.
"""

from __future__ import annotations

import inspect
import signal
import sys
import threading
from importlib import import_module
from pkgutil import iter_modules
from types import FrameType

import typer

from feature_repo.errors import VolspikeError
from infra import commands

ORDER = (
    "demo up exchange ingest validate featurize score outcomes replay materialize label split train tune evaluate "
    "audit promote rollback infer export reproduce predict drift report schedule bench doctor clean"
).split()
"""Order of the commands in the help: the order in which the work is done."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def build() -> typer.Typer:
    """Assemble the application from the modules in ``infra/commands``; each has a function ``command``."""
    app = typer.Typer(
        name="volspike",
        help="How likely is a volatility spike in the next 60 seconds? From tape to served, monitored forecasts.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich takes 0.35 s to import: the help would miss its 0.5 s
    )
    there = {module.name for module in iter_modules(commands.__path__)}
    for name in (n for n in ORDER if n in there):
        function = import_module(f"infra.commands.{name}").command
        app.command(name, help=help_text(function.__doc__ or ""))(function)

    @app.callback()
    def _root() -> None:
        # Without a callback typer makes a lone command the application itself, and refuses to build with none.
        pass

    return app


def help_text(docstring: str) -> str:
    r"""Keep the line breaks of paragraphs that hold an indented line (examples); the others are wrapped.

    The sections of a NumPy docstring (``Parameters`` and on) are for readers of the code and left out.

    Examples
    --------
    >>> help_text("Do it.\n\n    Example:\n        volspike do")
    'Do it.\n\n\x08\nExample:\n    volspike do'
    """
    paragraphs = []
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if len(lines) > 1 and set(lines[1]) == {"-"}:
            break
        kept = any(line.startswith(" ") for line in lines)
        paragraphs.append("\n".join(["\b", *lines] if kept else lines))
    return "\n\n".join(paragraphs)


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit.

    Raises
    ------
    SystemExit
        Always, with the code described in the module's docstring.
    """
    # so that whatever it started is ended, and what is half-written goes; a command may set a handler of its own
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    try:
        code = build()(args=args, prog_name="volspike", standalone_mode=False)
    except VolspikeError as error:
        print(f"volspike: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ValueError as error:
        problem = wrong_settings(error)
        if problem is None:
            raise
        print(f"volspike: {problem}", file=sys.stderr)
        sys.exit(2)
    except typer.TyperException as error:
        # typer carries its own click, so an installed click's exception classes would never match.
        usage(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code
        print("volspike: interrupted; what was committed is kept", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def wrong_settings(error: ValueError) -> str | None:
    """Name the settings that were refused, one a line; None if the error is about something else."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError) or error.title != "Settings":
        return None
    refused = (f"setting {e['loc'][0]}: {e['msg']}, was {e['input']!r}" for e in error.errors())
    return "; ".join(refused) + ". See .env.example for every setting and its bounds"


def usage(error: typer.TyperException) -> None:
    """Print what was wrong with a call, and how to get help, on standard error."""
    show = getattr(error, "show", None)
    if show is None:
        print(f"volspike: {error}", file=sys.stderr)
    else:
        show()


if __name__ == "__main__":
    main()

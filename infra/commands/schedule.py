"""``volspike schedule``: the drift report, compaction and retention, in time."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    once: Annotated[
        str | None, typer.Option(metavar="JOB", help="Run one job now: drift, compact, retention.")
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show the jobs, when each is due and how it last ended.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 unless a scheduler runs and nothing is overdue.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --list or --once: print the result as JSON.")
    ] = False,
) -> int:
    """Run the drift report hourly, merge small table parts, delete what is old; until Ctrl-C.

    Where cron or a cluster keeps the time, let it call --once instead.

    Example:
        volspike schedule
        volspike schedule --once drift
    """
    import json
    import signal
    import threading
    from types import FrameType

    from feature_repo.errors import UsageError
    from infra.logs import configure_logging
    from infra.settings import settings
    from infra.tables_view import emit, table
    from monitoring import schedule
    from monitoring.jobs import Runner

    if sum((once is not None, list_, check)) > 1:
        raise UsageError("give one of --once, --list and --check, not several")
    if as_json and not (list_ or once):
        raise UsageError("--json goes with --list or --once: a scheduler that runs writes its log only")
    configure_logging(settings().log_level)
    if list_:
        rows = schedule.listing()
        if as_json:
            emit(rows)
        else:
            header = ("job", "does", "next run (UTC)", "last run", "code", "seconds")
            table(
                "schedule",
                header,
                [tuple(r[k] for k in ("job", "what", "next", "last", "code", "seconds")) for r in rows],
            )
        return 0
    if check:
        wrong = schedule.ill()
        typer.echo(wrong or "a scheduler runs, nothing is overdue")
        return 1 if wrong else 0
    runner, stop = Runner(), threading.Event()

    def finish() -> None:
        stop.set()
        if once is not None:
            runner.stop()

    def end(number: int, frame: FrameType | None) -> None:
        # not here: what the signal interrupted may hold the very locks that these take
        threading.Thread(target=finish, daemon=True).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if once is None:
        schedule.serve(stop, runner)
        return 0
    code = runner.run(once)
    if as_json:
        typer.echo(json.dumps({"job": once, "code": code, "ran": code is not None}))
    return 1 if code is None else min(abs(code), 2)

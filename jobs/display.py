"""What a job shows on the terminal: its progress while it runs, a table when it ends, and what to do next."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

console = Console(highlight=False)
if not console.is_terminal:
    # A log has no width of its own; 80 columns would cut the names of stages.
    console.width = 120
POLL_SECONDS = 0.5
PLAIN_SECONDS = 20.0
"""Between two lines of progress where the output is no terminal."""

Poll = Callable[[], tuple[float, str]]


@contextlib.contextmanager
def progress(title: str, total: int | None, poll: Poll) -> Iterator[None]:
    """Show a bar while the body runs. `poll` gives how much is done, and a remark (rates)."""
    stop = threading.Event()
    show = _live if console.is_terminal else _plain
    thread = threading.Thread(target=show, args=(title, total, poll, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _live(title: str, total: int | None, poll: Poll, stop: threading.Event) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[remark]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, remark="starting")
        while True:
            ended = stop.wait(POLL_SECONDS)
            done, remark = poll()
            bar.update(task, completed=done, remark=remark)
            if ended:
                return


def _plain(title: str, total: int | None, poll: Poll, stop: threading.Event) -> None:
    while True:
        ended = stop.wait(PLAIN_SECONDS)
        done, remark = poll()
        console.print(f"{title}: {done:.0f}{f' of {total}' if total is not None else ''}  {remark}")
        if ended:
            return


def heading(text: str) -> None:
    """Announce a stage."""
    console.print(f"[bold]{text}[/bold]")


def truncated_line(counts: Mapping[str, int]) -> dict[str, int]:
    """What a summary says of responses that the judge read in part: nothing where there are none."""
    cut = counts.get("truncated", 0)
    return {"with a response cut for the judge": cut} if cut else {}


def server_lines(counted: Mapping[str, float]) -> dict[str, float]:
    """What a summary says of a server by what it counted: nothing where none was asked."""
    if "requests" not in counted:
        return {}
    named = {"requests": "requests", "retries": "of them again", "prompt_tokens": "prompt tokens"}
    named |= {"cached_tokens": "of them cached", "completion_tokens": "completion tokens", "cost": "cost"}
    return {f"server: {text}": counted[name] for name, text in named.items()}


def summary(title: str, rows: Mapping[str, object]) -> None:
    """A final table of names and values."""
    console.print(title, soft_wrap=True, markup=False)
    table = Table(show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(
            name,
            f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value),
        )
    console.print(table)

"""`metrics.jsonl`: one row an optimiser step, written by one worker while the driver reads along.

A row is complete once its newline is there. The file only ever shrinks by being replaced, so that a reader can tell.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(file: Path) -> list[Row]:
    """All complete rows, none if there is no file."""
    if not file.exists():
        return []
    complete, newline, _ = file.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in complete.splitlines()] if newline else []


def rewind(file: Path, step: int) -> None:
    """Drop the rows after a step: training goes on from there and writes them again."""
    kept = [row for row in read_rows(file) if row["step"] <= step]
    partial = file.with_suffix(".partial")
    partial.write_text("".join(_line(row) for row in kept), encoding="utf-8")
    partial.replace(file)


def append(file: Path, row: Row) -> None:
    """Write one row at the end."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(_line(row))


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


class Follower:
    """Reads along: every step's row once and in order, however often the file is replaced."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._inode = -1
        self._offset = 0
        self._step = 0

    def new_rows(self) -> list[Row]:
        """The rows of steps that were not returned before."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if (status.st_ino, status.st_size >= self._offset) != (self._inode, True):
                self._inode, self._offset = status.st_ino, 0
            stream.seek(self._offset)
            complete, newline, _ = stream.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        rows = [row for line in complete.splitlines() if (row := json.loads(line))["step"] > self._step]
        self._step = rows[-1]["step"] if rows else self._step
        return rows

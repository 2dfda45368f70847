"""Training examples on disk: Parquet or Arrow files of token ids, one row an example.

The adapter's have `input_ids` and `labels` (indices of the critical rules), the reward model's `chosen_ids` and
`rejected_ids`; all are lists of int32. An `.arrow` file (IPC) is mapped into memory, not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramo_ray.errors import TrainingError
from ramo_ray.training.run import Task

COLUMNS: dict[Task, tuple[str, str]] = {"adapter": ("input_ids", "labels"), "reward": ("chosen_ids", "rejected_ids")}


class Examples:
    """Rows of a file, by index. Raises `TrainingError` if it is missing, empty or lacks the task's columns."""

    def __init__(self, path: Path, task: Task) -> None:
        table = _read(path)
        wrong = [name for name in COLUMNS[task] if name not in table.column_names or not _holds_ids(table, name)]
        if wrong:
            raise TrainingError(
                f"{path}: needs the columns {' and '.join(COLUMNS[task])}, each a list of int32; at fault: "
                f"{', '.join(wrong)}. The file has: {table.schema.to_string().replace(chr(10), ', ')}."
            )
        if not table.num_rows:
            raise TrainingError(
                f"{path}: holds no examples to train on. Give more prompts, raise `training.max_length`, "
                "or keep ties, whichever left them out."
            )
        self._columns = {name: table.column(name) for name in COLUMNS[task]}
        texts = [_lengths(column) for name, column in self._columns.items() if name != "labels"]
        self.lengths: NDArray[np.int64] = np.sum(texts, axis=0)
        """Tokens of each example [n]."""

    def __len__(self) -> int:
        return len(self.lengths)

    def lists(self, column: str, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The lists of one column at the given rows."""
        values = self._columns[column]
        return [values[int(row)].values.to_numpy(zero_copy_only=False).astype(np.int64) for row in rows]


def _read(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        if path.suffix == ".arrow":
            return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        return parquet.read_table(path, memory_map=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise TrainingError(
            f"{path}: cannot be read as Parquet or Arrow examples ({' '.join(str(error).split())[:200]}). "
            "Remove it and run again."
        ) from None


def _holds_ids(table: Any, name: str) -> bool:
    import pyarrow.types as types

    kind = table.schema.field(name).type
    return bool(types.is_list(kind) and types.is_integer(kind.value_type))


def _lengths(column: Any) -> NDArray[np.int64]:
    import pyarrow.compute as compute

    lengths: NDArray[np.int64] = compute.list_value_length(column).to_numpy().astype(np.int64)
    return lengths

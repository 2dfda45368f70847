"""Tables in parts, committed together: what makes a run continue where it stood.

A *part* is what one write task got: a file of the same name in each of the run's tables. The last table's file is
written last and commits the part; a part without it is debris of a run that was stopped, and `open` removes it.
Files appear by renaming, so a reader never sees half of one. What a part cost (judge calls, tokens, seconds) lies in
the metadata of its commit file, so that totals survive any stop and need no other bookkeeping.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ramo_ray.core.records import content_hash
from ramo_ray.engines.base import Usage
from ramo_ray.pipelines.tables import schema, table

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

COSTS = ("calls", "tokens", "seconds", "adapter_seconds", *Usage._fields)
STATISTICS = b"ramo_ray.statistics"
Tables = Mapping[str, Sequence[Mapping[str, Any]]]
Convert = Callable[[dict[str, Any]], dict[str, list[dict[str, Any]]]]


class PartStore(NamedTuple):
    """The tables of one run under `root`, the committing one last."""

    root: str
    names: tuple[str, ...]

    def open(self) -> PartStore:
        """Remove what an interrupted run left uncommitted. Only one run may write to a store."""
        for name in self.names:
            folder = Path(self.root, name)
            folder.mkdir(parents=True, exist_ok=True)
            committed = {file.name for file in self.files(self.names[-1])}
            for file in folder.iterdir():
                if file.name not in committed:
                    file.unlink()
        return self

    def files(self, name: str) -> list[Path]:
        """The files of one table."""
        return sorted(Path(self.root, name).glob("part-*.parquet"))

    def write_part(self, tables: Tables, statistics: Mapping[str, float]) -> None:
        """Write one part. Its name is a hash of its rows' ids, so that a task that runs again writes the same files."""
        import pyarrow.parquet as pq

        built = {name: table(name, tables[name]) for name in self.names}
        name = f"part-{content_hash([_ids(part) for part in built.values()])}.parquet"
        for key in self.names:
            metadata = {STATISTICS: json.dumps(dict(statistics)).encode()} if key == self.names[-1] else None
            target = Path(self.root, key, name)
            partial = target.with_name(f".{name}.{os.getpid()}")
            pq.write_table(built[key].replace_schema_metadata(metadata), partial)
            os.replace(partial, target)

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One whole table, or some of its columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = schema(name)
        if columns is not None:
            wanted = pa.schema([wanted.field(column) for column in columns])
        parts = [pq.read_table(file, columns=columns).cast(wanted) for file in self.files(name)]
        return pa.concat_tables(parts) if parts else wanted.empty_table()

    def totals(self) -> Counter[str]:
        """Sum of the statistics of all committed parts."""
        import pyarrow.parquet as pq

        total: Counter[str] = Counter()
        for file in self.files(self.names[-1]):
            metadata = pq.read_schema(file).metadata or {}
            total.update(json.loads(metadata.get(STATISTICS, b"{}")))
        return total


def served(totals: Counter[str]) -> dict[str, float]:
    """Of a store's totals, what servers counted, with its price; empty where none was asked."""
    if not totals["requests"]:
        return {}
    counts = {name: int(totals[name]) for name in Usage._fields if name != "cost"}
    return {**counts, "cost": round(totals["cost"], 6)}


def _ids(rows: pa.Table) -> list[dict[str, str]]:
    """What tells a table's rows apart: not the scores, which may differ in the last digits when a task runs again."""
    keys = [name for name in rows.column_names if name in ("origin", "id") or name.endswith("_id")]
    return sorted(rows.select(keys).to_pylist(), key=lambda row: [str(value) for value in row.values()])


def write_groups(groups: Dataset, store: PartStore, convert: Convert, meter: Any) -> None:
    """Run the pipeline: turn each finished group into rows of the store's tables and commit them block by block.

    Args:
        groups: dataset of `groups`.
        store: where the rows go.
        convert: one group to rows by table; tables that it leaves out get none.
        meter: handle of a `Meter`, told how many groups and rows of the committing table were written.
    """
    from ray.data import Datasink

    class GroupSink(Datasink):  # type: ignore[misc]
        """One part a write task."""

        def write(self, blocks: Iterable[Any], ctx: Any) -> None:  # noqa: ARG002 (Ray's signature)
            meter.add.remote(**write_blocks(blocks, store, convert))

    groups.write_datasink(GroupSink(), ray_remote_args={"num_cpus": 0.1})


def write_blocks(blocks: Iterable[Any], store: PartStore, convert: Convert) -> dict[str, int]:
    """Commit the groups of some blocks as one part (none where they are empty); count groups and committed rows."""
    from ray.data.block import BlockAccessor

    listed = [group for block in blocks for group in BlockAccessor.for_block(block).to_arrow().to_pylist()]
    if not listed:
        return {"groups": 0, "rows": 0}
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in store.names}
    statistics: Counter[str] = Counter(groups=len(listed))
    for group in listed:
        for name, rows in convert(group).items():
            tables[name] += rows
        statistics.update({key: group[key] for key in COSTS if group[key] is not None})
    store.write_part(tables, statistics)
    return {"groups": len(listed), "rows": len(tables[store.names[-1]])}

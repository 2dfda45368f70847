"""Tables in parts, committed together: what makes a run continue where it stood, at any size.

A *part* is what one write task got of one shard: a file of the same name in each of the run's tables. The last table's
file is written last and commits the part; a part without it is debris of a run that was stopped, and `open` removes it.
Files appear whole (by renaming, or as object stores do it by themselves), so a reader never sees half of one. What a
part cost (judge calls, tokens, seconds) lies in the metadata of its commit file, so that totals survive any stop.

A part's name begins with its shard's number. What is done in a shard is read from the shard's own parts, by the task
that reads the shard: no process ever holds the ids of more than one shard, but for the rows that are given up, which
the driver lists for the quarantine (some 0.5 kB each). For 10^8 conversations in shards of
10^3 prompts, with `part_groups` at 10^3, that is 10^5 files a table and about 1 MB of ids in a task; a driver that
lists them holds 20 MB of names, and reads their footers once at the end, at some thousand a second. Where blocks are
small beside parts it is more: groups come mixed from all shards that are being read (4 at a time), each of which gets a
part of its own of what is committed together.

Ray Data has a checkpointing of its own. It counts a row with an error as done, keys by row (adding 20 rules would rate
all 100 again), wants no fan-out between reading and writing, and a finished run starts its actors to find that out.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from ramo_ray.core.records import content_hash
from ramo_ray.engines.base import Usage
from ramo_ray.errors import RamoError
from ramo_ray.pipelines.actors import SMALL
from ramo_ray.pipelines.tables import schema, table, unpacked

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem
    from ray.data import Dataset

COSTS = ("calls", "tokens", "computed", "seconds", "adapter_seconds", *Usage._fields)
STATISTICS = b"ramo_ray.statistics"
FENCE, ROUND_DIGITS = ".round", 4
WRITERS = 4
"""Tasks that write parts at a time."""
READERS = 16
"""Footers that are read at a time: of an object store, each takes tens of milliseconds."""
ORIGIN, LONGEST_SHOWN = "origin.json", 100
COUNTED = {"preferences": ("tie", "truncated", "chosen_is")}
"""Columns whose values are counted in a part's statistics, so that nobody has to read them all for it."""
Tables = Mapping[str, Sequence[Mapping[str, Any]]]
Convert = Callable[[dict[str, Any]], dict[str, list[dict[str, Any]]]]


def filesystem(root: str) -> tuple[FileSystem, str]:
    """The file system of a folder or URI (`s3://bucket/run`, `gs://…`), and the path there."""
    from pyarrow import fs

    found: tuple[FileSystem, str] = (
        fs.FileSystem.from_uri(root) if "://" in root else (fs.LocalFileSystem(), os.path.abspath(root))
    )
    return found


def write_table(files: FileSystem, path: str, rows: pa.Table) -> None:
    """Write a Parquet file so that no reader sees half of it."""
    import pyarrow.parquet as pq

    with _whole(files, path) as place:
        pq.write_table(rows, place, filesystem=files)


def write_text(files: FileSystem, path: str, text: str) -> None:
    """Write a text so that no reader sees half of it."""
    with _whole(files, path) as place, files.open_output_stream(place) as stream:
        stream.write(text.encode())


@contextlib.contextmanager
def _whole(files: FileSystem, path: str) -> Iterator[str]:
    """Where to write what shall appear at a path when it is whole."""
    from pyarrow import fs

    if not isinstance(files, fs.LocalFileSystem):
        # An object appears when its upload is completed.
        yield path
        return
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{name}.{os.getpid()}")
    yield partial
    os.replace(partial, path)


class PartStore(NamedTuple):
    """The tables of one run under `root` (a folder or a URI), the committing one last.

    `round` names one going through what is pending. Only the latest may write: a worker of a driver that was killed
    may outlive it by seconds, and what it still has under way is under way again by then.
    """

    root: str
    names: tuple[str, ...]
    round: str = ""

    def open(self) -> PartStore:
        """Begin a round: remove what an interrupted run left uncommitted, and let no earlier round write any more."""
        files, base = filesystem(self.root)
        files.create_dir(base, recursive=True)
        # The number keeps the rounds' parts in order, the token tells two runs apart that begin the same one.
        before = self._latest_round()
        begun = self._replace(round=f"{int(before[:ROUND_DIGITS] or 0) + 1:0{ROUND_DIGITS}d}{secrets.token_hex(3)}")
        write_text(files, f"{base}/{FENCE}", begun.round)
        begun._clear()
        return begun

    def _clear(self) -> None:
        files, base = filesystem(self.root)
        for name in self.names:
            files.create_dir(f"{base}/{name}", recursive=True)
        committed = self._committed()
        for name in self.names:
            for path in self._listed(name):
                if os.path.basename(path) not in committed:
                    files.delete_file(path)

    def _committed(self) -> set[str]:
        """Names of the parts that are whole: in every table, as a late writer's first files may have been cleared."""
        return set.intersection(*({os.path.basename(path) for path in self.files(name)} for name in self.names))

    def _latest_round(self) -> str:
        files, base = filesystem(self.root)
        try:
            with files.open_input_stream(f"{base}/{FENCE}") as stream:
                return str(stream.read().decode())
        except FileNotFoundError:
            return ""

    def _require_round(self) -> None:
        if self._latest_round() != self.round:
            raise RamoError(f"{self.root}: another run has taken over; what this one had under way is left to it.")

    def claim(self, origin: Mapping[str, Any]) -> list[str]:
        """Note what the tables' results depend on; say what differs from what was noted before, which stays then.

        While there are no results, what was noted before is that of a run that came to nothing.
        """
        files, base = filesystem(self.root)
        # As JSON gives it back.
        now = json.loads(json.dumps(origin))
        if not self.files(self.names[-1]):
            files.create_dir(base, recursive=True)
            write_text(files, f"{base}/{ORIGIN}", json.dumps(now, indent=2))
            return []
        with files.open_input_stream(f"{base}/{ORIGIN}") as stream:
            before = json.loads(stream.read())
        keys = sorted({*before, *now})
        return [_change(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]

    def _listed(self, name: str) -> list[str]:
        from pyarrow import fs

        files, base = filesystem(self.root)
        selector = fs.FileSelector(f"{base}/{name}", allow_not_found=True)
        return [info.path for info in files.get_file_info(selector) if info.is_file]

    def files(self, name: str, shard: int | None = None) -> list[str]:
        """The files of one table, or of one shard in it."""
        prefix = "part-" if shard is None else _prefix(shard)
        found = (path for path in self._listed(name) if os.path.basename(path).startswith(prefix))
        return sorted(path for path in found if path.endswith(".parquet"))

    def by_shard(self) -> dict[int, list[str]]:
        """The names of all committed parts, by shard."""
        found: defaultdict[int, list[str]] = defaultdict(list)
        for name in sorted(self._committed()):
            found[int(name.split("-")[1])].append(name)
        return dict(found)

    def write_part(
        self, tables: Tables, statistics: Mapping[str, float], shard: int = 0, of: Sequence[str] = ()
    ) -> None:
        """Write one part. Its name is a hash of what it is of, so that a task that runs again writes the same files.

        Args:
            tables: rows by table.
            statistics: what they cost.
            shard: where they belong.
            of: ids of the groups that the part holds, which stay the same when a judge answers otherwise the second
                time; by default the ids of its rows.

        Raises:
            RamoError: another round has begun.
        """
        files, base = filesystem(self.root)
        built = {name: table(name, tables[name]) for name in self.names}
        file = (
            f"{_prefix(shard)}{self.round}-{content_hash(list(of) or [_ids(part) for part in built.values()])}.parquet"
        )
        self._require_round()
        for name in self.names:
            if name == self.names[-1]:
                self._require_round()
            metadata = {STATISTICS: json.dumps(dict(statistics)).encode()} if name == self.names[-1] else None
            write_table(files, f"{base}/{name}/{file}", built[name].replace_schema_metadata(metadata))

    def read(self, name: str, columns: Sequence[str] | None = None, parts: Sequence[str] | None = None) -> pa.Table:
        """A table, or some of its columns, or some of its parts by name."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = schema(name)
        if columns is not None:
            wanted = pa.schema([wanted.field(column) for column in columns])
        files, base = filesystem(self.root)
        paths = self.files(name) if parts is None else [f"{base}/{name}/{part}" for part in parts]
        # One by one, as a data set of many files would guess their schema from the first.
        read = (pq.ParquetFile(files.open_input_file(path)).read(columns=columns).cast(wanted) for path in paths)
        return pa.concat_tables([wanted.empty_table(), *read])

    def count(self, name: str) -> int:
        """Rows of one table."""
        import pyarrow.parquet as pq

        files, _ = filesystem(self.root)

        def rows(path: str) -> int:
            with files.open_input_file(path) as opened:
                return int(pq.ParquetFile(opened).metadata.num_rows)

        with ThreadPoolExecutor(READERS) as pool:
            return sum(pool.map(rows, self.files(name)))

    def totals(self) -> Counter[str]:
        """Sum of the statistics of all committed parts."""
        total: Counter[str] = Counter()
        for statistics in self._statistics():
            total.update(statistics)
        return total

    def _statistics(self) -> Iterator[dict[str, float]]:
        import pyarrow.parquet as pq

        files, _ = filesystem(self.root)

        def read(path: str) -> dict[str, float]:
            metadata = pq.read_schema(path, filesystem=files).metadata or {}
            return dict(json.loads(metadata.get(STATISTICS, b"{}")))

        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(read, self.files(self.names[-1]))


def served(totals: Counter[str]) -> dict[str, float]:
    """Of a store's totals, what servers counted, with its price; empty where none was asked."""
    if not totals["requests"]:
        return {}
    counts = {name: int(totals[name]) for name in Usage._fields if name != "cost"}
    return {**counts, "cost": round(totals["cost"], 6)}


def _change(name: str, before: Any, now: Any) -> str:
    texts = [repr(before), repr(now)]
    return f"{name} was {texts[0]}, is {texts[1]}" if max(map(len, texts)) <= LONGEST_SHOWN else f"{name} has changed"


def _prefix(shard: int) -> str:
    return f"part-{shard:06d}-"


def _ids(rows: pa.Table) -> list[dict[str, Any]]:
    """What tells a table's rows apart: not the scores, which may differ in the last digits when a task runs again."""
    keys = [name for name in rows.column_names if name in ("origin", "id", "rule_ids") or name.endswith("_id")]
    return sorted(rows.select(keys).to_pylist(), key=lambda row: [str(value) for value in row.values()])


def write_groups(groups: Dataset, store: PartStore, convert: Convert, overseer: Any, part_groups: int) -> None:
    """Run the pipeline: turn each finished group into rows of the store's tables and commit them block by block.

    Args:
        groups: dataset of `groups`.
        store: where the rows go.
        convert: one group to rows by table; tables that it leaves out get none.
        overseer: handle of an `Overseer`, told how many groups and rows of the committing table were written.
        part_groups: groups that are committed together, or more.
    """
    from ray.data import Datasink

    class GroupSink(Datasink):  # type: ignore[misc]
        """One part a write task and shard."""

        @property
        def min_rows_per_write(self) -> int:
            return part_groups

        def write(self, blocks: Iterable[Any], ctx: Any) -> None:  # noqa: ARG002 (Ray's signature)
            overseer.add.remote(**write_blocks(blocks, store, convert))

    groups.write_datasink(GroupSink(), ray_remote_args=SMALL, concurrency=WRITERS)


def write_blocks(blocks: Iterable[Any], store: PartStore, convert: Convert) -> dict[str, int]:
    """Commit the groups of some blocks as one part a shard; count groups and committed rows.

    Groups that were postponed, as the run is stopping, are left out.
    """
    from ray.data.block import BlockAccessor

    by_shard: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for block in blocks:
        for group in unpacked(BlockAccessor.for_block(block).to_arrow()):
            if not group["postponed"]:
                by_shard[group["shard"] or 0].append(group)
    written = Counter(groups=0, rows=0)
    for shard, listed in by_shard.items():
        tables: dict[str, list[dict[str, Any]]] = {name: [] for name in store.names}
        statistics: Counter[str] = Counter(groups=len(listed))
        for group in listed:
            for name, rows in convert(group).items():
                tables[name] += rows
            statistics.update({key: group[key] for key in COSTS if group[key] is not None})
        statistics.update(_counted(tables))
        store.write_part(tables, statistics, shard, sorted(group["prompt_id"] for group in listed))
        written.update(groups=len(listed), rows=len(tables[store.names[-1]]))
    return dict(written)


def _counted(tables: Tables) -> Iterator[str]:
    for name, columns in COUNTED.items():
        for row in tables.get(name, ()):
            yield from (f"{column}={row[column]}" for column in columns)

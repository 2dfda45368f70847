"""A source's prompt groups in shards on disk: what a run reads, resumes and accounts for one at a time."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ramo_ray.pipelines.store import filesystem, write_table, write_text
from ramo_ray.pipelines.tables import schema, table
from ramo_ray.settings import SPLITS, SplitSettings

if TYPE_CHECKING:
    import pyarrow as pa

Group = dict[str, Any]
SHARD_GROUPS, LEAST_GROUPS = 1024, 64
"""Prompts of a shard: what one task reads at a time, and whose results it looks through."""
SHARDS = 8
"""Of a source that is large enough for shards of `LEAST_GROUPS`: so that each task that reads has some."""
OUTLINE = ["prompt_id", "conversations.list.element.conversation_id", "trios"]
FOLDER, INDEX = "groups", "index.json"


class Written(NamedTuple):
    """What one task wrote: counts, and the names of its files."""

    counts: Counter[str]
    shards: list[str]
    bad: list[str]


class Grouped(NamedTuple):
    """A source in shards under `root`.

    `cuts` place the splits; `prompts` counts those of the wanted splits; `trios` and `conversations` count what each
    split has (under "" where nothing is split), conversations of the wanted splits alone; `shards` and `bad` are names
    of files.
    """

    root: str
    rows: int
    quarantined: int
    cuts: list[float]
    prompts: int
    trios: dict[str, int]
    conversations: dict[str, int]
    shards: list[str]
    bad: list[str]

    def count(self, wanted: Sequence[str]) -> int:
        """Trios in some splits."""
        return sum(self.trios.get(split, 0) for split in wanted)

    def others(self, wanted: Sequence[str]) -> int:
        """Trios in the other splits."""
        return sum(self.trios.values()) - self.count(wanted)

    def members(self, kind: str, wanted: Sequence[str]) -> int:
        """Prompts, trios or conversations in some splits."""
        return {
            "prompts": self.prompts,
            "trios": self.count(wanted),
            "conversations": sum(self.conversations[split] for split in wanted),
        }[kind]

    def groups(self, shard: int) -> list[Group]:
        """The groups of one shard."""
        return [row | {"shard": shard} for row in self._shard(shard).cast(schema("groups")).to_pylist()]

    def outlines(self, shard: int) -> list[Group]:
        """The groups of one shard without their texts: who is in which."""
        rows: list[Group] = self._shard(shard, OUTLINE).to_pylist()
        return rows

    def _shard(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        import pyarrow.parquet as pq

        files, base = filesystem(self.root)
        with files.open_input_file(f"{base}/{FOLDER}/{self.shards[shard]}") as opened:
            return pq.ParquetFile(opened).read(columns=columns)

    def bad_rows(self) -> Iterator[dict[str, Any]]:
        """The rows that could not be used, with their reasons."""
        import pyarrow.parquet as pq

        files, base = filesystem(self.root)
        for name in self.bad:
            with files.open_input_file(f"{base}/{FOLDER}/{name}") as opened:
                for batch in pq.ParquetFile(opened).iter_batches():
                    yield from batch.to_pylist()


def read_grouped(root: str) -> Grouped | None:
    """What was grouped under a root; None before it was, or where it was interrupted."""
    files, base = filesystem(root)
    try:
        with files.open_input_stream(f"{base}/{FOLDER}/{INDEX}") as stream:
            return Grouped(**json.loads(stream.read()))._replace(root=root)
    except FileNotFoundError:
        return None


def begin_shards(root: str) -> None:
    """Make an empty folder for the shards under a root; what an interrupted attempt left there goes."""
    files, base = filesystem(root)
    files.create_dir(f"{base}/{FOLDER}", recursive=True)
    files.delete_dir_contents(f"{base}/{FOLDER}")


def commit_shards(found: Grouped) -> None:
    """Write the index, without which the shards do not count."""
    files, base = filesystem(found.root)
    write_text(files, f"{base}/{FOLDER}/{INDEX}", json.dumps(found._replace(root="")._asdict()))


def indexed(
    root: str,
    rows: int,
    cuts: list[float],
    written: Sequence[Written],
    shares: SplitSettings | None,
    wanted: Sequence[str],
) -> Grouped:
    """The sum of what tasks wrote."""
    total: Counter[str] = Counter()
    for own in written:
        total.update(own.counts)
    return Grouped(
        root=root,
        rows=rows,
        quarantined=total["bad"],
        cuts=cuts,
        prompts=total["prompts"],
        trios={split: total[f"trios {split}"] for split in (SPLITS if shares else [""])},
        conversations={split: total[f"conversations {split}"] for split in wanted},
        shards=sorted(name for own in written for name in own.shards),
        bad=sorted(name for own in written for name in own.bad),
    )


def groups_a_shard(prompts: int) -> int:
    """Prompts that go into one shard, of so many in all."""
    return min(SHARD_GROUPS, max(LEAST_GROUPS, math.ceil(prompts / SHARDS)))


def write_shards(groups: Iterable[Group], root: str, name: str, size: int) -> Written:
    """Write groups, so many a file, and bad rows apart."""
    counts: Counter[str] = Counter()
    bad: list[dict[str, Any]] = []
    shards: list[str] = []
    files, base = filesystem(root)
    usable = (group for group in groups if _count(group, counts, bad))
    while chunk := list(itertools.islice(usable, size)):
        shards.append(f"shard-{name}-{len(shards):04d}.parquet")
        write_table(files, f"{base}/{FOLDER}/{shards[-1]}", table("groups", chunk))
    if bad:
        write_table(files, f"{base}/{FOLDER}/bad-{name}.parquet", table("quarantine", bad))
    return Written(counts, shards, [f"bad-{name}.parquet"] if bad else [])


def _count(group: Group, counts: Counter[str], bad: list[dict[str, Any]]) -> bool:
    """Count a group, take its bad rows out of it, and say whether anything is left to work on."""
    bad += group["bad"]
    counts["bad"] += len(group["bad"])
    counts[f"trios {group['split']}"] += len(group["trios"])
    group["bad"] = []
    if not group["prompt"]:
        return False
    counts["prompts"] += 1
    counts[f"conversations {group['split']}"] += len(group["conversations"])
    return True

"""A source to shards of prompt groups on disk: one row per prompt, with all its responses and the trios between them.

This is done once a run, by Ray's tasks; the driver holds counts, and the prompts' hashes while there are few. The
shuffle that brings a prompt's rows together from wherever they stand in the source is a barrier, and behind it the
work flows, resumes and is accounted for shard by shard. What was grouped stays as it was: a run that continues does
not see rows that were added to its source since.

Of a source so small that one task would have all of its rows anyway, the driver does what the tasks would.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ramo_ray.core import splits
from ramo_ray.core.records import content_hash, conversation_id, unit_interval
from ramo_ray.errors import ConfigError, SourceError
from ramo_ray.pipelines.reading import place_of
from ramo_ray.pipelines.shards import (
    Group,
    Grouped,
    Written,
    begin_shards,
    commit_shards,
    groups_a_shard,
    indexed,
    read_grouped,
    write_shards,
)
from ramo_ray.pipelines.sources import Source, read_rows, split_of
from ramo_ray.pipelines.tables import schema, table
from ramo_ray.settings import SPLITS, SplitSettings

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_A_BATCH = 512
HASHES_A_CHUNK = 65_536
ROWS_A_PARTITION, CHARACTERS_A_PARTITION, MOST_PARTITIONS = 20_000, 32 * 2**20, 2048
"""Rows, and their texts, that one task brings together by prompt; and the most such tasks."""
SMALL_BYTES = 4 * 2**20
"""Of a source's files, together and perhaps compressed, which the driver reads: some 10,000 rows, within seconds."""
CPUS = 0.5
"""Of a task that reads or groups. Nothing else runs then, but the shuffle's own actors."""
REASONS = 3
BAD_KEYS = 64
"""Rows that cannot be used have no prompt: they travel under so many made-up ones."""


def group_source(source: Source, shares: SplitSettings | None, wanted: Sequence[str], root: str) -> Grouped:
    """Group a source's usable prompts in some splits (or [""]) into shards under `root`, once; a large one needs a Ray.

    Raises:
        SourceError: no usable row.
        ConfigError: fewer prompts than splits.
    """
    if found := read_grouped(root):
        return found
    begin_shards(root)
    scan_all, write = (scan, _write_here) if _is_small(source) else (_scan_all, _write_groups)
    scanned = scan_all(source)
    cuts = _cuts_of(source, scanned, shares)
    written = write(source, scanned, cuts, wanted, root)
    found = indexed(root, scanned.rows, cuts, written, shares, wanted)
    commit_shards(found)
    return found


def _is_small(source: Source) -> bool:
    try:
        return sum(os.path.getsize(file) for file in source.files) <= SMALL_BYTES
    except OSError:
        # Not a file here: a data set of a hub.
        return False


# First reading: counts, and where to cut


class Scan(NamedTuple):
    """Rows of a source and their texts' size, why some cannot be used, and its prompts' hashes (as many as decide)."""

    rows: int
    characters: int
    reasons: Counter[str]
    units: np.ndarray


def _parts(source: Source) -> list[Source]:
    """What separate tasks may read: with a `limit`, rows count in order."""
    return [source] if source.limit else [source._replace(files=[file]) for file in source.files]


def _scan_all(source: Source) -> Scan:
    import ray

    scan_part = ray.remote(num_cpus=CPUS)(scan)
    found = Scan(0, 0, Counter(), np.empty(0))
    pending = [scan_part.remote(part) for part in _parts(source)]
    while pending:
        # One at a time, so that the driver holds the hashes of one part beside the sum.
        (done,), pending = ray.wait(pending, num_returns=1)
        part = ray.get(done)
        units = np.unique(np.concatenate([found.units, part.units]))[: splits.EXACT_UP_TO + 1]
        found = Scan(found.rows + part.rows, found.characters + part.characters, found.reasons + part.reasons, units)
    return found


def scan(source: Source) -> Scan:
    """Read a source through once."""
    rows, characters, reasons, units, chunk = 0, 0, Counter[str](), np.empty(0), list[float]()
    for row in read_rows(source):
        rows += 1
        characters += _characters(row)
        if row.get("reason"):
            reasons[row["reason"]] += 1
            if len(reasons) > HASHES_A_CHUNK:
                reasons = Counter(dict(reasons.most_common(REASONS)))
        elif len(units) <= splits.EXACT_UP_TO:
            chunk.append(unit_interval(row["prompt_id"], "split"))
        if len(chunk) >= HASHES_A_CHUNK:
            units, chunk = np.unique(np.concatenate([units, chunk])), []
    units = np.unique(np.concatenate([units, chunk]))[: splits.EXACT_UP_TO + 1]
    return Scan(rows, characters, Counter(dict(reasons.most_common(REASONS))), units)


def _characters(row: dict[str, Any]) -> int:
    texts = [row.get("response_a"), row.get("response_b"), *(m["content"] for m in row.get("prompt") or ())]
    return sum(len(text) for text in texts if text)


def _nothing_usable(source: Source, found: Scan) -> SourceError:
    if found.rows == 0:
        return SourceError(f"{source.files[0]}: holds no row.")
    reasons = "; ".join(f"{count} × {reason}" for reason, count in found.reasons.most_common(REASONS))
    return SourceError(f"{source.files[0]}: none of its {found.rows} rows can be used: {reasons}.")


def _cuts_of(source: Source, scanned: Scan, shares: SplitSettings | None) -> list[float]:
    """Where the splits are cut.

    Raises:
        SourceError: no usable row.
        ConfigError: fewer prompts than splits.
    """
    if not len(scanned.units):
        raise _nothing_usable(source, scanned)
    if shares is None:
        return []
    try:
        return [float(cut) for cut in splits.boundaries(scanned.units, [getattr(shares, split) for split in SPLITS])]
    except ValueError as error:
        raise ConfigError(f"{source.files[0]}: {error}; give more prompts (or raise `limit`).") from None


# Second reading: rows to groups


def _write_groups(
    source: Source, scanned: Scan, cuts: Sequence[float], wanted: Sequence[str], root: str
) -> list[Written]:
    """Bring a source's rows together by prompt, and write them; without texts those of other splits, and bad ones."""
    import ray

    parts = _parts(source)
    items = [{"part": i} for i in range(len(parts))]
    read = partial(_read_part, parts=parts, cuts=list(cuts), wanted=tuple(wanted))
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        read, batch_size=1, batch_format="pyarrow", num_cpus=CPUS
    )
    partitions = 1 + max(scanned.rows // ROWS_A_PARTITION, scanned.characters // CHARACTERS_A_PARTITION)
    # A task takes a partition whole, and writes it: a block for each group would be a hundred small buffers each.
    written = rows.repartition(min(MOST_PARTITIONS, partitions), keys=["prompt_id"], sort=True).map_batches(
        partial(_write_partition, cuts=list(cuts), root=root, size=groups_a_shard(len(scanned.units))),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=CPUS,
    )
    return [Written(*json.loads(row["written"])) for row in written.take_all()]


def _write_here(
    source: Source, scanned: Scan, cuts: Sequence[float], wanted: Sequence[str], root: str
) -> list[Written]:
    """What `_write_groups` does, in this process."""
    columns = dict.fromkeys(schema("rows").names)
    rows = sorted((columns | row for row in _travelling(source, cuts, wanted)), key=lambda row: row["prompt_id"])
    return [_write_rows(rows, cuts, root, groups_a_shard(len(scanned.units)))]


def _read_part(
    batch: pa.Table, *, parts: Sequence[Source], cuts: Sequence[float], wanted: Sequence[str]
) -> Iterator[pa.Table]:
    rows = itertools.chain.from_iterable(_travelling(parts[i], cuts, wanted) for i in batch["part"].to_pylist())
    empty = True
    while chunk := list(itertools.islice(rows, ROWS_A_BATCH)):
        empty = False
        yield table("rows", chunk)
    if empty:
        yield schema("rows").empty_table()


def _travelling(source: Source, cuts: Sequence[float], wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A source's rows as they are brought together: those of other splits, and bad ones, without their texts."""
    for number, row in enumerate(read_rows(source)):
        yield _bare(row, number) if _is_bare(row, cuts, wanted) else row


def _is_bare(row: dict[str, Any], cuts: Sequence[float], wanted: Sequence[str]) -> bool:
    return bool(row.get("reason")) or split_of(row["prompt_id"], cuts) not in wanted


def _bare(row: dict[str, Any], number: int) -> dict[str, Any]:
    """What has to be known of a row that nobody rates: no texts."""
    key = f"bad {number % BAD_KEYS}" if row.get("reason") else row["prompt_id"]
    return {k: row.get(k) for k in ("origin", "reason", "trio_id")} | {"prompt_id": key}


def make_group(rows: Sequence[dict[str, Any]], cuts: Sequence[float]) -> Group:
    """Bring the rows of one prompt together: each response once, each trio once; the rest of them is `bad`.

    Which conversation gets which place does not depend on the order of the rows; of repeated trios the source's first
    counts.
    """
    prompt, first = rows[0]["prompt_id"], True
    bad: list[dict[str, Any]] = []
    conversations: dict[str, dict[str, Any]] = {}
    trios: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: place_of(row["origin"])):
        if row["reason"]:
            bad.append({"origin": row["origin"], "id": None, "reason": row["reason"]})
        elif row["trio_id"] in trios or (not row["trio_id"] and not first):
            bad.append({"origin": row["origin"], "id": row["trio_id"] or prompt, "reason": "repeats an earlier row"})
        elif row["trio_id"]:
            trios[row["trio_id"]] = row
            for side in ("a", "b") if row["prompt"] else ():
                response = row[f"response_{side}"]
                identifier = conversation_id(prompt, response)
                about = {"response": response, "source": row[f"source_{side}"], "done": False}
                conversations.setdefault(identifier, {"conversation_id": identifier, **about})
        first = False
    places = {identifier: place for place, identifier in enumerate(conversations)}
    return {
        "prompt_id": prompt,
        "prompt": rows[0]["prompt"],
        "split": "" if rows[0]["reason"] else split_of(prompt, cuts),
        "conversations": list(conversations.values()),
        "trios": [_trio(identifier, row, prompt, places) for identifier, row in trios.items()],
        "bad": bad,
        "calls": 0,
        "tokens": 0,
        "seconds": 0.0,
        "adapter_seconds": 0.0,
    }


def _trio(identifier: str, row: dict[str, Any], prompt: str, places: dict[str, int]) -> dict[str, Any]:
    if not places:
        return {"trio_id": identifier}
    sides = {side: places[conversation_id(prompt, row[f"response_{side}"])] for side in ("a", "b")}
    return {"trio_id": identifier, **sides, "label": row["label"]}


def _write_partition(rows: pa.Table, *, cuts: Sequence[float], root: str, size: int) -> pa.Table:
    """Write the groups of a partition, whose rows are sorted by prompt; what was written."""
    listed = rows.to_pylist()
    return _as_rows([_write_rows(listed, cuts, root, size)] if listed else [])


def _write_rows(rows: Sequence[dict[str, Any]], cuts: Sequence[float], root: str, size: int) -> Written:
    by_prompt = itertools.groupby(rows, key=lambda row: str(row["prompt_id"]))
    groups = (make_group(list(own), cuts) for _, own in by_prompt)
    # A task that is repeated writes the same files: no other partition has this prompt.
    return write_shards(groups, root, content_hash("partition", rows[0]["prompt_id"]), size)


def _as_rows(written: Sequence[Written]) -> pa.Table:
    import pyarrow as pa

    return pa.table({"written": pa.array([json.dumps(own) for own in written], pa.string())})

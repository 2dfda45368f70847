"""Preference sources to prompt groups: one row per prompt, with all its responses and the trios between them.

The source is read twice. `survey` streams through it once, on the driver, to count, to set bad rows aside and to
place the cuts between the splits; `prompt_groups` is the Ray Data pipeline that the work itself runs on.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ramo_ray.core import splits
from ramo_ray.core.prompts import check_prompt
from ramo_ray.core.records import conversation_id, prompt_id, unit_interval
from ramo_ray.errors import ConfigError, SourceError
from ramo_ray.pipelines.formats import EXPECTED, Format, as_prompt, detect, to_trio
from ramo_ray.pipelines.reading import RawRow, find_files, place_of, read_files
from ramo_ray.pipelines.tables import schema, table
from ramo_ray.settings import SPLITS, SourceSettings, SplitSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

Member = Literal["prompts", "conversations", "trios"]
ROWS_A_BATCH = 512
PROBED_ROWS = 20


class Source(NamedTuple):
    """Where trios, or prompts, come from. Plain values, so that it travels to Ray's workers."""

    files: list[str]
    kind: str
    limit: int | None
    split: str
    max_chars: int


class Survey(NamedTuple):
    """What one reading of a source found.

    `bad` holds quarantine rows, `cuts` place the splits, `trios` and `conversations` count what each split has (under
    "" where nothing is split).
    """

    rows: int
    bad: list[dict[str, Any]]
    cuts: list[float]
    prompts: int
    trios: Counter[str]
    conversations: Counter[str]

    def count(self, wanted: Sequence[str]) -> int:
        """Trios in some splits."""
        return sum(self.trios[split] for split in wanted)


def open_trios(path: str, settings: SourceSettings, limit: int | None) -> Source:
    """Find a preference source's files and its format.

    Raises:
        SourceError: nothing there, nothing in it, or none of its first rows has a known form.
    """
    files = find_files(path, "trios")
    kind = settings.format if settings.format != "auto" else _detect(path, files, settings.split)
    return Source(files, kind, limit, settings.split, settings.max_chars)


def open_prompts(path: str, settings: SourceSettings, limit: int | None) -> Source:
    """Find a source of prompts: text lines, or rows with a `prompt`."""
    return Source(find_files(path, "prompts"), "prompts", limit, settings.split, settings.max_chars)


def _detect(path: str, files: Sequence[str], split: str) -> Format:
    seen: list[str] = []
    for raw in read_files(files, PROBED_ROWS, split):
        found = detect(raw.value) if isinstance(raw.value, dict) else None
        if found:
            return found
        seen.append(raw.reason or (f"columns {sorted(raw.value)}" if isinstance(raw.value, dict) else "not an object"))
    if not seen:
        raise SourceError(f"{path}: holds no row.")
    raise SourceError(f"{path}: not a preference source; expected {EXPECTED}, but its first row has: {seen[0]}.")


def read_rows(source: Source) -> Iterator[dict[str, Any]]:
    """Rows of the `rows` schema: a trio, or its origin with the reason for quarantine."""
    convert: Callable[[Any], dict[str, Any]] = (
        partial(_prompt_row, max_chars=source.max_chars)
        if source.kind == "prompts"
        else partial(to_trio, kind=source.kind, max_chars=source.max_chars)  # type: ignore[arg-type]
    )
    for raw in read_files(source.files, source.limit, source.split):
        yield _convert(raw, convert)


def _convert(raw: RawRow, convert: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    if raw.reason is not None:
        return {"origin": raw.origin, "reason": raw.reason}
    try:
        return {"origin": raw.origin, **convert(raw.value)}
    except ValueError as error:
        return {"origin": raw.origin, "reason": str(error)}


def _prompt_row(row: Any, max_chars: int) -> dict[str, Any]:
    value = row.get("prompt") if isinstance(row, dict) else row
    if value is None:
        raise ValueError("`prompt` is missing")
    prompt = as_prompt(value)
    check_prompt(prompt)
    length = sum(len(message["content"]) for message in prompt)
    if length > max_chars:
        raise ValueError(f"too long: a prompt of {length:,} characters, source.max_chars allows {max_chars:,}")
    return {"prompt_id": prompt_id(prompt), "prompt": prompt}


def survey(source: Source, shares: SplitSettings | None) -> Survey:
    """Read the source once: count its rows, find the bad and the repeated ones, cut the prompts into splits.

    Repeats are found by id, which takes about 300 MB of the driver's memory for 10^6 trios.

    Raises:
        SourceError: no usable row.
        ConfigError: fewer prompts than splits.
    """
    rows, bad, seen = 0, [], set()
    trios: Counter[str] = Counter()
    conversations: dict[str, set[str]] = {}
    for row in read_rows(source):
        rows += 1
        key = row.get("trio_id") or row.get("prompt_id")
        if row.get("reason"):
            bad.append({"origin": row["origin"], "id": None, "reason": row["reason"]})
        elif key in seen:
            bad.append({"origin": row["origin"], "id": key, "reason": "repeats an earlier row"})
        else:
            seen.add(key)
            trios[row["prompt_id"]] += 1
            texts = [row[f"response_{side}"] for side in ("a", "b") if "trio_id" in row]
            conversations.setdefault(row["prompt_id"], set()).update(
                conversation_id(row["prompt_id"], t) for t in texts
            )
    if not trios:
        raise _nothing_usable(source, rows, bad)
    cuts = _cuts(source, list(trios), shares)
    by_split = {prompt: split_of(prompt, cuts) for prompt in trios}
    split_trios: Counter[str] = Counter()
    split_conversations: Counter[str] = Counter()
    for prompt, split in by_split.items():
        split_trios[split] += trios[prompt]
        split_conversations[split] += len(conversations[prompt])
    return Survey(rows, bad, cuts, len(trios), split_trios, split_conversations)


def _nothing_usable(source: Source, rows: int, bad: Sequence[Mapping[str, Any]]) -> SourceError:
    if rows == 0:
        return SourceError(f"{source.files[0]}: holds no row.")
    common = Counter(row["reason"] for row in bad).most_common(3)
    reasons = "; ".join(f"{count} × {reason}" for reason, count in common)
    return SourceError(f"{source.files[0]}: none of its {rows} rows can be used: {reasons}.")


def _cuts(source: Source, prompts: Sequence[str], shares: SplitSettings | None) -> list[float]:
    if shares is None:
        return []
    import numpy as np

    units = np.array([unit_interval(prompt, "split") for prompt in prompts])
    try:
        return [float(cut) for cut in splits.boundaries(units, [getattr(shares, split) for split in SPLITS])]
    except ValueError as error:
        raise ConfigError(f"{source.files[0]}: {error}; give more prompts (or raise `limit`).") from None


def split_of(prompt: str, cuts: Sequence[float]) -> str:
    """The split that a prompt, by id, belongs to; "" where nothing is split."""
    if not cuts:
        return ""
    import numpy as np

    return SPLITS[splits.assign(unit_interval(prompt, "split"), np.asarray(cuts))]


def prompt_groups(
    source: Source, cuts: Sequence[float], wanted: Sequence[str], group_rows: int, *, partitions: int = 1
) -> Dataset:
    """Dataset of `groups`, in blocks of `group_rows`: the usable prompts of a source in some splits (or [""]).

    A group-by on the prompt brings rows of one prompt together wherever they stand in the source, so that each
    conversation occurs once. It is a barrier: groups flow, block by block, when the source has been read. With a
    `limit` one task reads everything in order; else each file has its own. `partitions` tasks bring rows together.
    """
    import ray

    parts = [source] if source.limit else [source._replace(files=[file]) for file in source.files]
    items = [{"part": i} for i in range(len(parts))]
    read = partial(_read_part, parts=parts, cuts=list(cuts), wanted=tuple(wanted))
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        read, batch_size=1, batch_format="pyarrow", num_cpus=0.1
    )
    groups = rows.groupby("prompt_id", num_partitions=partitions).map_groups(
        partial(_make_group, cuts=list(cuts)), batch_format="pyarrow", num_cpus=0.1
    )
    return groups.repartition(target_num_rows_per_block=group_rows)


def _read_part(
    batch: pa.Table, *, parts: Sequence[Source], cuts: Sequence[float], wanted: Sequence[str]
) -> Iterator[pa.Table]:
    rows = itertools.chain.from_iterable(read_rows(parts[i]) for i in batch["part"].to_pylist())
    good = (row for row in rows if not row.get("reason") and split_of(row["prompt_id"], cuts) in wanted)
    empty = True
    while chunk := list(itertools.islice(good, ROWS_A_BATCH)):
        empty = False
        yield table("rows", chunk)
    if empty:
        yield schema("rows").empty_table()


def _make_group(rows: pa.Table, *, cuts: Sequence[float]) -> pa.Table:
    listed = rows.to_pylist()
    return table("groups", [make_group(listed, cuts)] if listed else [])


def make_group(rows: Sequence[dict[str, Any]], cuts: Sequence[float]) -> dict[str, Any]:
    """Bring the rows of one prompt together: each response once, each trio once.

    Which conversation gets which place does not depend on the order of the rows; of repeated trios the source's first
    counts.
    """
    prompt = rows[0]["prompt_id"]
    conversations: dict[str, dict[str, Any]] = {}
    trios: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: place_of(row["origin"])):
        if not row["trio_id"]:
            continue
        for side in ("a", "b"):
            response = row[f"response_{side}"]
            identifier = conversation_id(prompt, response)
            about = {"response": response, "source": row[f"source_{side}"], "done": False}
            conversations.setdefault(identifier, {"conversation_id": identifier, **about})
        trios.setdefault(row["trio_id"], row)
    places = {identifier: place for place, identifier in enumerate(conversations)}
    return {
        "prompt_id": prompt,
        "prompt": rows[0]["prompt"],
        "split": split_of(prompt, cuts),
        "conversations": list(conversations.values()),
        "trios": [
            {
                "trio_id": trio,
                "a": places[conversation_id(prompt, row["response_a"])],
                "b": places[conversation_id(prompt, row["response_b"])],
                "label": row["label"],
            }
            for trio, row in trios.items()
        ],
        "bad": [],
        "calls": 0,
        "tokens": 0,
        "seconds": 0.0,
        "adapter_seconds": 0.0,
    }


def keep_pending(groups: Dataset, done: Iterable[str], member: Member) -> Dataset:
    """Leave out what is done, by id: prompts, trios, or conversations (which are marked, as trios need them still).

    Groups with nothing left to do are dropped. 10^6 ids take about 100 MB in the object store, once a node.
    """
    import ray

    finished = frozenset(done)
    if not finished:
        return groups
    step = partial(_drop_done, reference=ray.put(finished), member=member)
    return groups.map_batches(step, batch_format="pyarrow", num_cpus=0.1)


def _drop_done(batch: pa.Table, *, reference: Any, member: Member) -> pa.Table:
    import ray

    done = ray.get(reference)
    return table("groups", [group for group in batch.to_pylist() if _pending(group, done, member)])


def _pending(group: dict[str, Any], done: frozenset[str], member: Member) -> bool:
    """Whether the group has something to do; what is done in it is marked, or taken out."""
    if member == "prompts":
        return group["prompt_id"] not in done
    if member == "trios":
        group["trios"] = [trio for trio in group["trios"] if trio["trio_id"] not in done]
        return bool(group["trios"])
    for conversation in group["conversations"]:
        conversation["done"] = conversation["conversation_id"] in done
    return not all(conversation["done"] for conversation in group["conversations"])

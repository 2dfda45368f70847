"""Files to raw rows: JSONL (also gzipped), JSON lists, Parquet, text lines of prompts, and hub data sets.

A line that cannot be parsed is a row with a reason, not an end; a file that is something else is a `SourceError`.
"""

from __future__ import annotations

import glob
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ramo_ray.errors import SourceError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".txt")
HUB = "hub:"
COUNTED_BYTES, COUNTED_LINES = 64 * 2**20, 100_000
"""Files up to this size are counted line by line; of others so many lines tell the rest."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class RawRow(NamedTuple):
    """One row of a source: where it stands, and its value, or the reason why it has none."""

    origin: str
    value: Any
    reason: str | None


def place_of(origin: str) -> tuple[str, int]:
    """File and number of a row's origin: they sort as the rows stand in the source."""
    file, number = re.fullmatch(r"(.*)[:\[](\d+)\]?", origin, re.DOTALL).groups()  # type: ignore[union-attr]
    return file, int(number)


def find_files(path: str, key: str) -> list[str]:
    """Files that a path, a folder, a glob or a hub id stands for, sorted; `key` names the setting in errors.

    Raises:
        SourceError: nothing is there, or a file's suffix is not one that can be read.
    """
    local = Path(path).expanduser()
    if local.is_file():
        found = [str(local)]
    elif local.is_dir():
        found = sorted(str(f) for f in local.rglob("*") if f.is_file() and f.name.endswith(SUFFIXES))
        if not found:
            raise SourceError(f"{key}: the folder {path} holds no file that ends in {', '.join(SUFFIXES)}.")
    elif any(c in path for c in "*?["):
        found = sorted(glob.glob(path, recursive=True))
        if not found:
            raise SourceError(f"{key}: no file matches {path}.")
    elif _HUB_ID.fullmatch(path):
        return [HUB + path]
    else:
        raise SourceError(f"{key}: {path} does not exist. Give a file, a folder, a glob or a hub id (owner/name).")
    for file in found:
        if not file.endswith(SUFFIXES):
            raise SourceError(f"{file}: not a format that can be read; give one of {', '.join(SUFFIXES)}.")
    return found


def read_files(files: Sequence[str], limit: int | None, split: str) -> Iterator[RawRow]:
    """All rows of some files in order, at most `limit`."""
    return itertools.islice(itertools.chain.from_iterable(_read(file, split) for file in files), limit)


def count_rows(files: Sequence[str], limit: int | None, split: str) -> tuple[int, bool]:
    """Rows of some files, at most `limit`, and whether they were counted or estimated from the first ones' bytes."""
    counted = [_count(file, split) for file in files]
    rows = sum(count for count, _ in counted)
    return (min(rows, limit) if limit else rows), all(exact for _, exact in counted)


def _count(file: str, split: str) -> tuple[int, bool]:
    import pyarrow.parquet as pq

    if file.endswith(".parquet"):
        return pq.read_metadata(file).num_rows, True
    size = 0 if file.startswith(HUB) else Path(file).stat().st_size
    if file.startswith(HUB) or file.endswith(".json") or size <= COUNTED_BYTES:
        return sum(1 for _ in _read(file, split)), True
    # Of a compressed file too: what is read ahead is small beside the sample.
    with open(file, "rb") as raw, gzip.GzipFile(fileobj=raw) if file.endswith(".gz") else raw as opened:
        lines = sum(1 for _ in itertools.islice(opened, COUNTED_LINES))
        return round(size / raw.tell() * lines), False


def _read(file: str, split: str) -> Iterator[RawRow]:
    if file.startswith(HUB):
        return _hub(file.removeprefix(HUB), split)
    if file.endswith(".parquet"):
        return _parquet(file)
    if file.endswith(".json"):
        return _json(file)
    return _lines(file, is_json=not file.endswith(".txt"))


def _lines(file: str, *, is_json: bool) -> Iterator[RawRow]:
    opener = gzip.open if file.endswith(".gz") else open
    try:
        with opener(file, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _line(f"{file}:{number}", line, is_json)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(f"{file}: not readable as gzip: {error}") from None
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror}") from None


def _line(origin: str, line: bytes, is_json: bool) -> RawRow:
    try:
        text = line.decode("utf-8-sig").strip()
        return RawRow(origin, json.loads(text) if is_json else {"prompt": text}, None)
    except UnicodeDecodeError:
        return RawRow(origin, None, "the line is not UTF-8")
    except json.JSONDecodeError as error:
        return RawRow(origin, None, f"the line is not JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        return RawRow(origin, None, "the line is not JSON (nested too deeply)")
    except ValueError:
        return RawRow(origin, None, "the line holds a number of too many digits")


def _json(file: str) -> Iterator[RawRow]:
    try:
        value = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(value, list):
        raise SourceError(f"{file}: must hold a JSON list of rows, but holds a {type(value).__name__}.")
    for number, row in enumerate(value):
        yield RawRow(f"{file}[{number}]", row, None)


def _parquet(file: str) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = itertools.count()
    try:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield RawRow(f"{file}[{next(numbers)}]", row, None)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{file}: not readable as Parquet: {error}") from None


def _hub(name: str, split: str) -> Iterator[RawRow]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        for number, row in enumerate(rows):
            yield RawRow(f"{name}/{split}[{number}]", row, None)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(
            f"{name}: neither a file here nor a data set that the hub gives (split {split}): {first_line}"
        ) from None

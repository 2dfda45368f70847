"""Preference sources and sources of prompts: their files, their format, and their rows, good or bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ramo_ray.core import splits
from ramo_ray.core.prompts import check_prompt
from ramo_ray.core.records import prompt_id, unit_interval
from ramo_ray.errors import SourceError
from ramo_ray.pipelines.formats import EXPECTED, Format, as_prompt, detect, to_trio
from ramo_ray.pipelines.reading import RawRow, find_files, read_files
from ramo_ray.settings import SPLITS, SourceSettings

PROBED_ROWS = 20


class Source(NamedTuple):
    """Where trios, or prompts, come from. Plain values, so that it travels to Ray's workers."""

    files: list[str]
    kind: str
    limit: int | None
    split: str
    max_chars: int


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


def split_of(prompt: str, cuts: Sequence[float]) -> str:
    """The split that a prompt, by id, belongs to; "" where nothing is split."""
    if not cuts:
        return ""
    return SPLITS[splits.assign(unit_interval(prompt, "split"), np.asarray(cuts))]

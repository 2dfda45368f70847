"""Rows to training examples: token ids in one Parquet file that every worker reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ramo_ray.errors import RolesError
from ramo_ray.models.adapter import adapter_token_ids
from ramo_ray.models.templates import reward_token_ids


class Examples(NamedTuple):
    """How many rows became examples, and how many were left out: too long, or of roles that the template refuses."""

    rows: int
    too_long: int
    refused: int
    tokens: int


def write_adapter_examples(path: Path, tokenizer: Any, rows: Iterable[Mapping[str, Any]], max_length: int) -> Examples:
    """Write the Rule Adapter's examples: each trio twice, with A and B swapped, as its critical rules do not change.

    Columns: `input_ids` (list<int32>), `labels` (indices of the critical rules, list<int32>).
    """
    written: list[dict[str, Any]] = []
    used = too_long = 0
    for row in rows:
        orders = (("response_a", "response_b"), ("response_b", "response_a"))
        ids = [adapter_token_ids(tokenizer, row["prompt"], row[one], row[other]) for one, other in orders]
        if max(map(len, ids)) > max_length:
            too_long += 1
            continue
        used += 1
        written += [{"input_ids": own, "labels": list(row["critical"])} for own in ids]
    _write(path, written, ("input_ids", "labels"))
    return Examples(used, too_long, 0, sum(len(row["input_ids"]) for row in written))


def write_reward_examples(path: Path, tokenizer: Any, rows: Iterable[Mapping[str, Any]], max_length: int) -> Examples:
    """Write the reward model's examples. Columns: `chosen_ids`, `rejected_ids` (list<int32>)."""
    written: list[dict[str, Any]] = []
    too_long = refused = 0
    for row in rows:
        try:
            pair = {
                f"{side}_ids": reward_token_ids(tokenizer, row["prompt"], row[side][0]["content"])
                for side in ("chosen", "rejected")
            }
        except RolesError:
            refused += 1
            continue
        if max(map(len, pair.values())) > max_length:
            too_long += 1
        else:
            written.append(pair)
    _write(path, written, ("chosen_ids", "rejected_ids"))
    return Examples(len(written), too_long, refused, sum(len(ids) for row in written for ids in row.values()))


def _write(path: Path, rows: list[dict[str, Any]], columns: tuple[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(column, pa.list_(pa.int32())) for column in columns])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)

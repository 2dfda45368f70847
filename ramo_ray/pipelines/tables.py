"""Arrow schemas of the tables on disk (see `ramo_ray.core.records`) and of the prompt groups in flight."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ramo_ray.engines.base import Usage

if TYPE_CHECKING:
    import pyarrow as pa

PACKED = "packed"
"""The one column of blocks in flight."""


def schema(name: str) -> pa.Schema:
    """The schema of a table by name.

    On disk: `conversations`, `trios`, `ratings`, `critical`, `preferences`, `quarantine`; and `failures`,
    which the quarantine is made of when the run ends; of ways that are compared, `costs` and `compared` (trios that
    all ways rated). In flight: `rows` (one of a source, good or bad), `groups` (one prompt, all its responses, the
    trios between them), `rated_ways` (a group with what each way made of it) and `answers` (of a policy before and
    after, to one prompt).
    """
    import pyarrow as pa

    string, floats, strings = pa.string(), pa.list_(pa.float32()), pa.list_(pa.string())
    messages = pa.list_(pa.struct([("role", string), ("content", string)]))
    ratings = [
        ("rule_ids", strings),
        ("score", floats),
        ("p_yes", floats),
        ("p_no", floats),
        ("p_irrelevant", floats),
        ("label_mass", floats),
        ("truncated", pa.bool_()),
        ("error", string),
        ("final", pa.bool_()),
        # Of a row with an error, the rules that it was asked: there is nothing in the others.
        ("asked", strings),
    ]
    failure = [("origin", string), ("id", string), ("reason", string)]
    trio = [("trio_id", string), ("a", pa.int32()), ("b", pa.int32()), ("label", pa.int8()), ("error", string)]
    picked = [("rule_ids", strings), ("discrepancy", floats), ("relevance", floats), ("probability", floats)]
    rated_conversation = [
        ("conversation_id", string),
        ("response", string),
        ("source", string),
        ("done", pa.bool_()),
        ("known", strings),
        ("known_score", floats),
        *ratings,
    ]
    costs = [("calls", pa.int64()), ("tokens", pa.int64()), ("seconds", pa.float64())]
    fields: dict[str, list[tuple[str, Any]]] = {
        "conversations": [
            ("conversation_id", string),
            ("prompt_id", string),
            ("prompt", messages),
            ("response", string),
            ("source", string),
        ],
        "trios": [
            ("trio_id", string),
            ("prompt_id", string),
            ("prompt", messages),
            ("response_a", string),
            ("response_b", string),
            ("source_a", string),
            ("source_b", string),
            ("label", pa.int8()),
        ],
        "ratings": [("conversation_id", string), *ratings, ("fingerprint", string)],
        "critical": [
            ("trio_id", string),
            ("split", string),
            ("prompt", messages),
            ("response_a", string),
            ("response_b", string),
            ("label", pa.int8()),
            ("critical", pa.list_(pa.int32())),
            ("scores_a", floats),
            ("scores_b", floats),
            ("relevance", floats),
        ],
        "preferences": [
            ("trio_id", string),
            ("prompt", messages),
            ("chosen", messages),
            ("rejected", messages),
            ("chosen_is", string),
            ("rule_ids", strings),
            ("scores_chosen", floats),
            ("scores_rejected", floats),
            ("margin", pa.float32()),
            ("tie", pa.bool_()),
            ("truncated", pa.bool_()),
            ("label", pa.int8()),
            ("split", string),
            ("labeler", string),
            ("fingerprint", string),
        ],
        "failures": [*failure, ("final", pa.bool_())],
        "quarantine": failure,
        "rows": [
            ("origin", string),
            ("reason", string),
            ("trio_id", string),
            ("prompt_id", string),
            ("prompt", messages),
            ("response_a", string),
            ("response_b", string),
            ("source_a", string),
            ("source_b", string),
            ("label", pa.int8()),
        ],
        "groups": [
            ("prompt_id", string),
            ("prompt", messages),
            ("split", string),
            ("conversations", pa.list_(pa.struct(rated_conversation))),
            ("trios", pa.list_(pa.struct([*trio, *picked]))),
            ("bad", pa.list_(pa.struct(failure))),
            ("shard", pa.int32()),
            ("postponed", pa.bool_()),
            *costs,
            ("computed", pa.int64()),
            ("adapter_seconds", pa.float64()),
            *((name, pa.float64() if name == "cost" else pa.int64()) for name in Usage._fields),
        ],
        "costs": [("way", string), ("prompt_id", string), *costs],
        "answers": [("prompt_id", string), ("prompt", messages), ("before", string), ("after", string)],
        "compared": [
            ("trio_id", string),
            ("prompt_id", string),
            ("conversation_a", string),
            ("conversation_b", string),
            ("label", pa.int8()),
            ("relevance", floats),
        ],
    }
    of_a_way = [("way", string), *costs, ("ratings", pa.list_(pa.struct(fields["ratings"])))]
    fields["rated_ways"] = [*fields["groups"], ("ways", pa.list_(pa.struct(of_a_way)))]
    return pa.schema(fields[name])


def table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of the named schema; a key that a row lacks is null, a key too many is an error."""
    import pyarrow as pa

    wanted = schema(name)
    listed = list(rows)
    strangers = {key for row in listed for key in row} - set(wanted.names)
    assert not strangers, f"{name} has no column {sorted(strangers)}"
    return pa.Table.from_pylist(listed, schema=wanted)


def packed(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as they travel between two stages: made to fit the named schema, then bytes in one column.

    To hand a block over, Ray copies it column by column, the nested ones level by level: for `groups` that is 5 ms,
    however few they are, and 0.1 ms for one column.
    """
    import pyarrow as pa

    fitted = table(name, rows).to_pylist()
    return pa.table({PACKED: pa.array([pickle.dumps(row, pickle.HIGHEST_PROTOCOL) for row in fitted], pa.binary())})


def unpacked(batch: pa.Table) -> list[dict[str, Any]]:
    """The rows that `packed` made a table of; none of a block without rows, of which Ray Data forgets the column."""
    return [] if not batch.num_rows else [pickle.loads(row.as_buffer()) for row in batch[PACKED]]


def postponed(groups: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Groups as they came to a stage that works on none any more, as the run is stopping; they are not written."""
    return packed("groups", [{**group, "postponed": True} for group in groups])

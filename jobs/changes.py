"""Which changes of its settings a run may not go on with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

IGNORED = (
    "output",
    "ray",
    "storage",
    "actors",
    "threads",
    "num_cpus",
    "num_gpus",
    "batch_size",
    "max_bad_fraction",
    "max_tries",
    "latency_s",
    "price_per_hour",
    "kinds",
    "part_groups",
    "micro_batch",
    "checkpoint_every",
    "max_failures",
    "base_url",
    "api_key_env",
    "concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "max_retries",
    "timeout_s",
    "input_price",
    "cached_input_price",
    "output_price",
)
"""Settings that decide where and how fast a run goes, not what comes out: they may change when it continues."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What has changed between two configurations that decides what comes out: each as `key was …, is …`."""
    for key in sorted({*before, *now}):
        if key in IGNORED:
            continue
        old, new = _keyed(before.get(key)), _keyed(now.get(key))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old!r}, is {new!r}"


def _keyed(value: Any) -> Any:
    """A list as a mapping from its places, so that its entries are compared one by one."""
    return {str(place): entry for place, entry in enumerate(value)} if isinstance(value, list) else value

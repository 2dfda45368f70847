"""How far an aligned policy's answers are from the policy that it began with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramo_ray.models.policy import PolicyPair
from ramo_ray.models.resolve import resolve
from ramo_ray.pipelines.actors import pool_options
from ramo_ray.pipelines.responses import asked_messages
from ramo_ray.settings import WriterSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


def measure_divergence(answers: Dataset, before: WriterSettings, policy: str) -> Dataset:
    """Add `kl` to rows with `prompt`, `before` and `after`, and the lengths `tokens_before` and `tokens_after`.

    It is in nats, along the answer after; null where the conversation does not fit into the policies' context.
    """
    return answers.map_batches(
        DivergenceMeter,
        fn_constructor_kwargs={"before": before.model_dump(mode="json"), "policy": policy},
        batch_format="pyarrow",
        batch_size=before.batch_size,
        **pool_options(before.actors),
    )


class DivergenceMeter:
    """Actor that owns a policy as it was and as it is."""

    def __init__(self, before: Mapping[str, Any], policy: str) -> None:
        self.settings = own = WriterSettings.model_validate(before)
        base = resolve(own.model, own.revision)
        self.pair = PolicyPair(Path(policy), base, dtype=own.dtype, threads=own.threads or os.cpu_count())

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa

        rows = batch.select(["prompt", "before", "after"]).to_pylist()
        asked = [asked_messages(row["prompt"], self.settings) for row in rows]
        before, after = (
            [self.pair.read(prompt, row[side]) for prompt, row in zip(asked, rows, strict=True)]
            for side in ("before", "after")
        )
        lengths = {"tokens_before": before, "tokens_after": after}
        for name, answered in lengths.items():
            batch = batch.append_column(name, pa.array([len(one.answer) for one in answered], pa.int64()))
        return batch.append_column("kl", pa.array([self.pair.divergence(one) for one in after], pa.float64()))

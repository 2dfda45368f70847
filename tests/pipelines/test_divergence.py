"""The actor that measures a divergence: what it conditions on, and what it leaves out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from tiny import write_moved_model

from ramo_ray.pipelines.divergence import DivergenceMeter
from ramo_ray.pipelines.tables import schema

pytestmark = pytest.mark.slow
SYSTEM = "You are terse."


def test_the_divergence_is_that_below_the_writers_own_system_message(tiny_model: Path, tmp_path: Path) -> None:
    write_moved_model(tiny_model, tmp_path / "moved", by=0.02)
    user = {"role": "user", "content": "Why?"}
    rows = [
        {"prompt_id": "1", "prompt": [user], "before": "So.", "after": "As it is so."},
        {
            "prompt_id": "2",
            "prompt": [{"role": "system", "content": SYSTEM}, user],
            "before": "So.",
            "after": "As it is so.",
        },
        {"prompt_id": "3", "prompt": [user], "before": "So.", "after": "x" * 600},
    ]
    batch = pa.Table.from_pylist(rows, schema=schema("answers"))
    bare, below = (
        DivergenceMeter({"model": str(tiny_model), "system": system}, str(tmp_path / "moved"))(batch).to_pylist()
        for system in (None, SYSTEM)
    )
    assert [row["tokens_after"] for row in bare] == [len("As it is so.")] * 2 + [600]
    assert bare[0]["kl"] != bare[1]["kl"]
    assert below[0]["kl"] == below[1]["kl"] == bare[1]["kl"] > 0
    assert bare[2]["kl"] is None

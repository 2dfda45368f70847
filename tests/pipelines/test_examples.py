"""Rows to training examples: both orders of a trio, and what is left out is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ramo_ray.models.templates import load_tokenizer
from ramo_ray.pipelines.examples import Examples, write_adapter_examples, write_reward_examples

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
pytestmark = pytest.mark.slow


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def answer(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def test_a_trio_is_written_in_both_orders_with_the_same_rules(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    rows: list[dict[str, Any]] = [
        {"prompt": user("Hi."), "response_a": "One.", "response_b": "Two.", "critical": [3, 1]},
        {"prompt": user("Hi."), "response_a": "x" * 900, "response_b": "Two.", "critical": [0]},
    ]
    found = write_adapter_examples(tmp_path / "examples.parquet", tokenizer, rows, 800)
    written = pq.read_table(tmp_path / "examples.parquet").to_pylist()
    assert found == Examples(1, 1, 0, sum(len(row["input_ids"]) for row in written))
    assert [row["labels"] for row in written] == [[3, 1], [3, 1]]
    one, other = (tokenizer.decode(row["input_ids"]) for row in written)
    assert one.index("One.") < one.index("Two.")
    assert other.index("Two.") < other.index("One.")


def test_roles_that_the_template_refuses_cost_the_row_and_not_the_run(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = NO_SYSTEM
    system = [{"role": "system", "content": "Be kind."}]
    rows = [
        {"prompt": user("Hi."), "chosen": answer("Hello."), "rejected": answer("No.")},
        {"prompt": system + user("Hi."), "chosen": answer("Hello."), "rejected": answer("No.")},
        {"prompt": user("Hi."), "chosen": answer("x" * 900), "rejected": answer("No.")},
    ]
    found = write_reward_examples(tmp_path / "examples.parquet", tokenizer, rows, 800)
    assert (found.rows, found.too_long, found.refused) == (1, 1, 1)
    assert pq.read_table(tmp_path / "examples.parquet").num_rows == 1

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ramo_ray.errors import TrainingError
from ramo_ray.training.examples import Examples

IDS = pa.list_(pa.int32())


def table(**columns: list[list[int]]) -> pa.Table:
    return pa.table({name: pa.array(rows, IDS) for name, rows in columns.items()})


def test_parquet_rows_come_back_by_index_across_row_groups(tmp_path: Path) -> None:
    rows = [[i] * (i + 1) for i in range(10)]
    pq.write_table(table(input_ids=rows, labels=[[0]] * 10), tmp_path / "e.parquet", row_group_size=3)
    examples = Examples(tmp_path / "e.parquet", "adapter")

    assert [ids.tolist() for ids in examples.lists("input_ids", np.array([9, 0, 4]))] == [rows[9], rows[0], rows[4]]
    assert examples.lengths.tolist() == list(range(1, 11))


def test_an_arrow_file_reads_the_same_and_pairs_count_both_texts(tmp_path: Path) -> None:
    data = table(chosen_ids=[[1, 2], [3]], rejected_ids=[[4], [5, 6, 7]])
    with pa.ipc.new_file(tmp_path / "e.arrow", data.schema) as writer:
        writer.write_table(data)
    examples = Examples(tmp_path / "e.arrow", "reward")

    assert len(examples) == 2
    assert examples.lengths.tolist() == [3, 4]
    assert examples.lists("rejected_ids", np.array([1]))[0].tolist() == [5, 6, 7]


def test_examples_that_cannot_be_trained_on_are_refused_by_file_and_column(tmp_path: Path) -> None:
    file = tmp_path / "e.parquet"
    with pytest.raises(TrainingError, match=r"e.parquet: cannot be read as Parquet"):
        Examples(file, "reward")
    file.write_text("not parquet at all")
    with pytest.raises(TrainingError, match=r"e.parquet: cannot be read as Parquet"):
        Examples(file, "reward")
    pq.write_table(table(chosen_ids=[], rejected_ids=[]), file)
    with pytest.raises(TrainingError, match=r"e.parquet: holds no examples to train on"):
        Examples(file, "reward")
    with pytest.raises(TrainingError, match="at fault: input_ids, labels"):
        Examples(file, "adapter")
    pq.write_table(pa.table({"chosen_ids": ["text"], "rejected_ids": pa.array([[1]], IDS)}), file)
    with pytest.raises(TrainingError, match=r"at fault: chosen_ids\."):
        Examples(file, "reward")

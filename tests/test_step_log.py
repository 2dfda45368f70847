from pathlib import Path

import pytest

from ramo_ray.step_log import Follower, append, read_rows, rewind


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(file: Path, *steps: int) -> None:
    for step in steps:
        append(file, {"step": step})


def steps_of(rows: list[dict[str, int]]) -> list[int]:
    return [row["step"] for row in rows]


def test_rows_are_read_as_written_and_a_torn_last_one_is_not(file: Path) -> None:
    assert read_rows(file) == []
    write(file, 1, 2)
    with file.open("a") as stream:
        stream.write('{"step": 3')

    assert steps_of(read_rows(file)) == [1, 2]


def test_rewinding_drops_later_rows_and_the_torn_one(file: Path) -> None:
    write(file, 1, 2, 3, 4)
    with file.open("a") as stream:
        stream.write('{"st')
    rewind(file, 2)
    write(file, 3)

    assert steps_of(read_rows(file)) == [1, 2, 3]
    rewind(file, 0)
    assert file.read_text() == ""


def test_a_number_that_is_not_finite_is_never_written(file: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        append(file, {"step": 1, "loss": float("nan")})
    assert not file.exists() or read_rows(file) == []


def test_a_follower_returns_every_step_once_across_a_restart(file: Path) -> None:
    follower = Follower(file)
    assert follower.new_rows() == []
    write(file, 1, 2, 3)
    assert steps_of(follower.new_rows()) == [1, 2, 3]
    assert follower.new_rows() == []
    rewind(file, 1)
    write(file, 2)
    assert follower.new_rows() == []
    write(file, 3, 4, 5)
    assert steps_of(follower.new_rows()) == [4, 5]


def test_a_follower_waits_for_the_end_of_a_row(file: Path) -> None:
    follower = Follower(file)
    write(file, 1)
    with file.open("a") as stream:
        stream.write('{"step"')
    assert steps_of(follower.new_rows()) == [1]
    with file.open("a") as stream:
        stream.write(": 2}\n")
    assert steps_of(follower.new_rows()) == [2]

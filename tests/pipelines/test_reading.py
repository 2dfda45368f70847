"""Files to raw rows: what is read, what becomes a row with a reason, and what is refused by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.errors import SourceError
from ramo_ray.pipelines.reading import HUB, RawRow, find_files, place_of, read_files

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01"
ROWS = [{"prompt": "a", "n": 1}, {"prompt": "b\u2028c", "n": None}, {"prompt": "ü€😀"}]


def read(file: Path, limit: int | None = None) -> list[RawRow]:
    return list(read_files([str(file)], limit, "train"))


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


# What is read


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json"])
def test_rows_of_every_text_format(tmp_path: Path, name: str) -> None:
    content = json.dumps(ROWS).encode() if name.endswith(".json") else lines(ROWS)
    file = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    found = read(file)
    assert [row.value for row in found] == ROWS
    assert [row.reason for row in found] == [None] * 3
    assert len({row.origin for row in found}) == 3
    assert all(row.origin.startswith(str(file)) for row in found)


def test_rows_of_parquet_with_nested_messages(tmp_path: Path) -> None:
    rows = [{"chosen": [{"role": "user", "content": "a"}], "n": 1}, {"chosen": None, "n": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=1)
    found = read(tmp_path / "x.parquet")
    assert [row.value for row in found] == rows
    assert [place_of(row.origin)[1] for row in found] == [0, 1]


def test_each_line_of_a_text_file_is_a_prompt(tmp_path: Path) -> None:
    file = write(tmp_path / "x.txt", "\ufefffirst\r\n\n  \n{second}\n".encode())
    assert [row.value for row in read(file)] == [{"prompt": "first"}, {"prompt": "{second}"}]
    assert [row.origin for row in read(file)] == [f"{file}:1", f"{file}:4"]


def test_windows_files_and_blank_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n   \n{"a": 2}')
    assert [row.value for row in read(file)] == [{"a": 1}, {"a": 2}]
    write(tmp_path / "x.json", b'\xef\xbb\xbf[{"a": 1}]')
    assert [row.value for row in read(tmp_path / "x.json")] == [{"a": 1}]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", b""), ("a.jsonl.gz", gzip.compress(b"")), ("a.json", b"[]"), ("a.txt", b"\n")):
        assert read(write(tmp_path / name, content)) == []


def test_a_limit_runs_over_all_files_in_order(tmp_path: Path) -> None:
    files = [str(write(tmp_path / f"{n}.jsonl", lines([{"f": n, "i": i} for i in range(3)]))) for n in range(2)]
    assert [row.value for row in read_files(files, 4, "")] == [
        {"f": 0, "i": 0},
        {"f": 0, "i": 1},
        {"f": 0, "i": 2},
        {"f": 1, "i": 0},
    ]
    assert len(list(read_files(files, None, ""))) == 6


# Lines that become a row with a reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', "the line is not JSON (Expecting value at column 6)"),
        (b"a,b,c", "the line is not JSON (Expecting value at column 1)"),
        (b'{"a": "\xff\xfe"}', "the line is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "the line is not UTF-8"),
        (b"[" * 100_000, "the line is not JSON (nested too deeply)"),
        (b'{"a": ' + b"7" * 5000 + b"}", "the line holds a number of too many digits"),
    ],
)
def test_a_broken_line_is_one_row(tmp_path: Path, line: bytes, reason: str) -> None:
    file = write(tmp_path / "x.jsonl", b'{"n": 1}\n' + line + b'\n{"n": 3}\n')
    first, broken, last = read(file)
    assert (first.value, last.value) == ({"n": 1}, {"n": 3})
    assert broken == RawRow(f"{file}:2", None, reason)


def test_an_escaped_surrogate_and_nul_reach_the_border(tmp_path: Path) -> None:
    (row,) = read(write(tmp_path / "x.jsonl", rb'{"a": "\ud800", "b": "\u0000"}'))
    assert row.value == {"a": "\ud800", "b": "\0"}


@given(st.binary(max_size=200))
def test_no_bytes_end_a_run(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = write(tmp_path_factory.getbasetemp() / "any.jsonl", content)
    for row in read(file):
        assert (row.reason is None) or row.value is None


# Files that are something else


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl.gz", PNG, "not readable as gzip: Not a gzipped file"),
        ("x.jsonl.gz", lines(ROWS), "not readable as gzip: Not a gzipped file"),
        ("x.jsonl.gz", gzip.compress(lines(ROWS))[:-12], "not readable as gzip: Compressed file ended"),
        ("x.jsonl.gz", gzip.compress(b"x" * 5)[:10] + b"\xff" * 40, "not readable as gzip: Error -3"),
        ("x.json", b'{"a": 1}', "must hold a JSON list of rows, but holds a dict"),
        ("x.json", lines(ROWS), "not readable as JSON: Extra data"),
        ("x.json", PNG, "not readable as JSON: "),
        ("x.json", b"[" * 100_000, "not readable as JSON: "),
        ("x.parquet", PNG, "not readable as Parquet: "),
        ("x.parquet", b"", "not readable as Parquet: "),
    ],
)
def test_a_file_of_another_format_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(SourceError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_a_torn_parquet_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": [f"text {n}" for n in range(1000)]}), file, compression="snappy")
    content = bytearray(file.read_bytes())
    content[4:2000] = b"\xff" * 1996
    file.write_bytes(bytes(content))
    with pytest.raises(SourceError, match="not readable as Parquet"):
        read(file)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz"])
def test_a_file_that_went_away_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        read(tmp_path / name)


# Finding files


def test_a_file_a_folder_and_a_glob(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.jsonl.gz", "deep/c.parquet", "d.txt", "e.json", "notes.md", ".part-1.parquet.77"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, b"")
    readable = sorted(str(tmp_path / name) for name in names[:5])
    assert find_files(str(tmp_path / "b.jsonl"), "trios") == [str(tmp_path / "b.jsonl")]
    assert find_files(str(tmp_path), "trios") == readable
    assert find_files(str(tmp_path / "*.json*"), "trios") == [
        str(tmp_path / name) for name in ("a.jsonl.gz", "b.jsonl", "e.json")
    ]
    assert find_files(str(tmp_path / "**" / "*.parquet"), "trios") == [str(tmp_path / "deep" / "c.parquet")]


def test_a_name_with_a_globs_letters_is_a_name(tmp_path: Path) -> None:
    file = write(tmp_path / "a[1].jsonl", b"")
    assert find_files(str(file), "trios") == [str(file)]


def test_a_hub_id() -> None:
    assert find_files("Anthropic/hh-rlhf", "trios") == [f"{HUB}Anthropic/hh-rlhf"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}/none.jsonl", r"trios: .*/none.jsonl does not exist\. Give a file, a folder, a glob or a hub id"),
        ("none.jsonl", "trios: none.jsonl does not exist"),
        ("{}/*.jsonl", r"trios: no file matches .*/\*\.jsonl"),
        ("{}/empty", r"trios: the folder .*/empty holds no file that ends in \.jsonl"),
        ("{}/x.csv", r"x\.csv: not a format that can be read; give one of \.jsonl"),
        ("{}/*.csv", r"x\.csv: not a format that can be read"),
    ],
)
def test_what_is_not_there_is_refused_by_key(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "x.csv", b"prompt,chosen,rejected\n")
    with pytest.raises(SourceError, match=message):
        find_files(path.format(tmp_path), "trios")


def test_origins_sort_as_the_rows_stand() -> None:
    origins = ["/a/x.jsonl:2", "/a/x.jsonl:10", "/a/y[1].json[3]", "/a/y[1].json[20]", "o/n/train[0]"]
    shuffled = [origins[place] for place in (3, 0, 4, 2, 1)]
    assert sorted(shuffled, key=place_of) == origins
    assert place_of("/a/y[1].json[20]") == ("/a/y[1].json", 20)

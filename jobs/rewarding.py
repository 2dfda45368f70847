"""`ramo reward`: rewards of a whole file from an endpoint, several requests at a time, taken up where it stood."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from jobs.display import progress, summary
from jobs.stage import write_text
from ramo_ray.client import EndpointError, RewardClient
from ramo_ray.errors import ConfigError, ServerError, SourceError, TooManyBadRowsError

PER_REQUEST = 16
"""Conversations that are asked for together; the endpoint packs those of several requests."""
ROW_FAULTS = (413, 422)
"""Statuses that say a conversation is at fault, and not the server or who asks."""


MARK = b'{"line": '
"""How each line of the output begins."""


class Line(NamedTuple):
    """A row of the file: its number, from 0, its hash, and what it holds."""

    number: int
    of: str
    row: dict[str, Any]


def reward_file(url: str, file: Path, output: Path, *, concurrency: int, token_env: str) -> None:
    """Write a line for each of a file's: its number `line`, its hash `of`, and `reward`, or `error` where it has none.

    Args:
        url: the endpoint's address.
        file: JSON lines, each with `prompt` and `response`, or `messages`.
        output: where to; rewards that it has are not asked for again. Lines come as they are answered.
        concurrency: requests under way at a time.
        token_env: name of the environment variable that holds the token; none is sent where it is not set.

    Raises:
        SourceError: the file cannot be read. ServerError: the endpoint is away, or refuses the token.
        TooManyBadRowsError: rows had no reward; the others are there.
    """
    if not file.is_file():
        raise SourceError(f"{file}: not a file. Give JSON lines, each with `prompt` and `response`, or `messages`.")
    done = _done(output, file)
    with file.open("rb") as lines:
        total = sum(1 for _ in lines)
    counted = {"done": len(done), "bad": 0}
    shown = progress("rewards", total, lambda: (counted["done"], f"{counted['bad']} without one"))
    with (
        shown,
        output.open("a", encoding="utf-8") as out,
        RewardClient(url, os.environ.get(token_env) or None) as client,
        ThreadPoolExecutor(concurrency) as pool,
    ):
        try:
            for found in _answered(pool, client, _blocks(file, done), 2 * concurrency):
                out.writelines(json.dumps(one) + "\n" for one in found)
                out.flush()
                counted["done"] += len(found)
                counted["bad"] += sum("error" in one for one in found)
        except BaseException:
            client.stop()
            pool.shutdown(cancel_futures=True)
            raise
    summary(f"rewards in {output}", {"rows": counted["done"], "without a reward": counted["bad"]})
    if counted["bad"]:
        raise TooManyBadRowsError(f"{counted['bad']} of {total} rows have no reward; {output} says why, line by line.")


def _done(output: Path, file: Path) -> set[int]:
    """Numbers of the lines that an earlier run has rewards of.

    Lines without a reward are taken out of the output, to be asked again, and so is a torn last line.

    Raises:
        ConfigError: the output is not this command's, or of another file.
    """
    if not output.exists():
        return set()
    content = output.read_bytes()
    *whole, torn = content.split(b"\n")
    rows = [_own(line, output) for line in whole]
    if torn and not (rows or torn.startswith(MARK)):
        raise _foreign(output)
    kept = {row["line"]: row for row in rows if "reward" in row}
    with file.open("rb") as lines:
        changed = [number for number, line in enumerate(lines) if number in kept and kept[number]["of"] != _hash(line)]
    if changed:
        raise ConfigError(
            f"{output}: has rewards of another {file.name} (line {changed[0] + 1} differs). Give another --output."
        )
    if torn or len(kept) < len(rows):
        write_text(output, "".join(json.dumps(row) + "\n" for row in kept.values()))
    return set(kept)


def _own(line: bytes, output: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and row.keys() >= {"line", "of"}:
            return row
    except ValueError:
        pass
    raise _foreign(output)


def _foreign(output: Path) -> ConfigError:
    return ConfigError(f"{output}: is there, and was not written by this command. Give another --output.")


def _hash(line: bytes) -> str:
    """What tells a line from another in its place."""
    return hashlib.blake2b(line.strip(), digest_size=8).hexdigest()


def _blocks(file: Path, done: set[int]) -> Iterator[list[Line]]:
    """Lines that are not done, some at a time."""
    with file.open("rb") as lines:
        fresh = (Line(number, _hash(line), _row(line)) for number, line in enumerate(lines) if number not in done)
        while block := list(itertools.islice(fresh, PER_REQUEST)):
            yield block


def _row(line: bytes) -> dict[str, Any]:
    """What a line holds; a row without texts, which the endpoint would refuse too, where it is no object."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return {key: row[key] for key in ("messages", "prompt", "response") if key in row} if isinstance(row, dict) else {}


def _answered(
    pool: ThreadPoolExecutor, client: RewardClient, blocks: Iterator[list[Line]], most: int
) -> Iterator[list[dict[str, Any]]]:
    """Answers to blocks, as they come; at most so many blocks wait at a time."""
    waiting: set[Future[list[dict[str, Any]]]] = set()
    for block in blocks:
        waiting.add(pool.submit(_ask, client, block))
        if len(waiting) >= most:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in ended)
    while waiting:
        ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (one.result() for one in ended)


def _ask(client: RewardClient, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Rewards of some lines; where one of them is at fault, of each half, and so on."""
    try:
        rewards = client.rewards([line.row for line in lines])
    except EndpointError as error:
        if error.status not in ROW_FAULTS:
            raise ServerError(f"{error}. What was answered is kept; run the same command again to continue.") from None
        if len(lines) == 1:
            return [{"line": lines[0].number, "of": lines[0].of, "error": error.sentence}]
        half = len(lines) // 2
        return [*_ask(client, lines[:half]), *_ask(client, lines[half:])]
    return [{"line": line.number, "of": line.of, "reward": reward} for line, reward in zip(lines, rewards, strict=True)]

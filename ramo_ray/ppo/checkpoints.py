"""OpenRLHF's checkpoints: a killed run may leave torn ones, or the policy's and the critic's of different steps."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROLES = ("_actor", "_critic")
LATEST = "latest"
"""DeepSpeed's file with the name of the last whole checkpoint, which it writes when all else is there."""


def settle(folder: Path) -> int:
    """Leave only what both policy and critic can go on from, and have both go on from the newest of it.

    Without that, OpenRLHF fails on a checkpoint that was begun only, or pairs a policy with an older critic.

    Returns:
        The step; 0 where there is none, and everything begins anew.
    """
    last = [_latest(folder / role) for role in ROLES]
    # What is older than a role's last whole one is whole too.
    common = [step for step in range(min(last), 0, -1) if all((folder / role / _tag(step)).is_dir() for role in ROLES)]
    if not common:
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    for role in ROLES:
        (folder / role / LATEST).write_text(_tag(common[0]))
        for other in (folder / role).glob(_tag("*")):
            if int(other.name.removeprefix(_tag(""))) > common[0]:
                shutil.rmtree(other)
    return common[0]


def _tag(step: int | str) -> str:
    return f"global_step{step}"


def _latest(role: Path) -> int:
    try:
        found = re.fullmatch(_tag(r"(\d+)"), (role / LATEST).read_text().strip())
    except FileNotFoundError:
        return 0
    return int(found[1]) if found else 0

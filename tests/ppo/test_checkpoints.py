"""What a killed run left is made such that policy and critic go on from the same step."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramo_ray.ppo.checkpoints import settle


def left(folder: Path, role: str, steps: list[int], latest: int | None) -> None:
    """A role's checkpoints by step, of which `latest` is the last that was completed."""
    for step in steps:
        (folder / role / f"global_step{step}").mkdir(parents=True)
    if latest is not None:
        (folder / role).mkdir(parents=True, exist_ok=True)
        (folder / role / "latest").write_text(f"global_step{latest}")


@pytest.mark.parametrize(
    ("actor", "critic", "step"),
    [
        (([20, 40], 40), ([20, 40], 40), 40),
        # The critic's second was begun only.
        (([20, 40], 40), ([20, 40], 20), 20),
        (([20, 40], 40), ([20], 20), 20),
        (([20, 40], 20), ([20, 40], 40), 20),
        # The first of either was begun only.
        (([20], None), ([20], 20), 0),
        (([20], 20), ([], None), 0),
        # Nothing that both have.
        (([40, 60], 60), ([20], 20), 0),
        (([], None), ([], None), 0),
    ],
)
def test_both_go_on_from_the_newest_that_both_have(
    tmp_path: Path, actor: tuple[list[int], int | None], critic: tuple[list[int], int | None], step: int
) -> None:
    folder = tmp_path / "checkpoints"
    for role, (steps, latest) in (("_actor", actor), ("_critic", critic)):
        left(folder, role, steps, latest)
    assert settle(folder) == step
    assert folder.exists() == bool(step)
    for role in ("_actor", "_critic") if step else ():
        assert (folder / role / "latest").read_text() == f"global_step{step}"
        assert max(int(tag.name[len("global_step") :]) for tag in (folder / role).glob("global_step*")) == step
    assert settle(folder) == step

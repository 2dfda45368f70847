"""The whole pipeline as a submitted job, from a clean clone, on a head of the test's own that is guarded by a token."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.dataset as pads
import pytest
from support import ROOT, Setup, all_gone, descendants, manifest, run, wait_until

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
RULES, R = 6, 2
STAGES = ("generate_responses", "rate", "train_adapter", "label", "train_reward", "evaluate_reward")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that Ray gives to its workers."""
    found: list[int] = []
    for port in range(secrets.randbelow(3000) + 5000, 10_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clean clone of the project's last commit."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("the project is not a git checkout here, so it cannot be cloned")
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(folder)], check=True)
    return folder


@contextlib.contextmanager
def head(clone: Path) -> Iterator[dict[str, str]]:
    """`cluster/local`, and the environment of who may use it. Ends with it, and so do all processes that it started."""
    port, dashboard, client, agent = free_ports(4)
    access = {
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    ports = {
        "RAMO_PORT": str(port),
        "RAMO_DASHBOARD_PORT": str(dashboard),
        "RAMO_CLIENT_PORT": str(client),
        "RAMO_AGENT_PORT": str(agent),
        "RAMO_BIN": str(BIN),
    }
    command = [str(clone / "cluster/local"), "--num-cpus", "2", "--object-store-memory", "300000000"]
    with subprocess.Popen(command, env=os.environ | access | ports, stdout=subprocess.DEVNULL) as process:
        started: list[psutil.Process] = []
        try:
            wait_until(lambda: answers(dashboard) and answers(agent), 60)
            yield access
        finally:
            started = descendants(psutil.Process(process.pid))
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        wait_until(lambda: all_gone(started), 60)


def submit(clone: Path, access: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """What Ray's own command makes of a job."""
    return in_clone(
        clone, access, str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", "python", "-m", *words
    )


def in_clone(clone: Path, access: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=clone, env=os.environ | access, capture_output=True, text=True, timeout=400, check=False
    )


def check_whole_run(output: Path) -> None:
    """The manifests add up: 2 · r judge calls a labelled trio, nothing rated on all rules that is labelled."""
    found = {stage: manifest(output / stage) for stage in STAGES}
    assert {m["status"] for m in found.values()} == {"finished"}
    assert found["generate_responses"]["counts"]["rows_in"] == 8
    for m in found.values():
        counts = m["counts"]
        assert counts["rows_in"] == counts["rows_out"] + counts["quarantined"] + counts["other_split"]
    rate, label = found["rate"], found["label"]
    assert rate["judge"]["calls"] == RULES * rate["counts"]["conversations"]
    assert label["judge"]["calls"] == 2 * R * label["counts"]["rows_out"]
    assert label["savings"]["calls_saved"] == 2 * (RULES - R) * label["counts"]["rows_out"]
    assert label["savings"]["calls_a_trio"] == 2 * R
    rated, labelled = (
        set(pads.dataset(str(output / stage / "data/ratings")).to_table()["conversation_id"].to_pylist())
        for stage in ("rate", "label")
    )
    assert labelled
    assert not rated & labelled
    assert (
        found["evaluate_reward"]["scores"]["pair_accuracy"]["count"] == found["evaluate_reward"]["counts"]["rows_out"]
    )
    assert (output / "report.html").stat().st_size > 50_000


def check_second_call(setup: Setup) -> None:
    """A call that finds its run finished says so, and loads neither Ray nor torch."""
    code = (
        "import sys; from jobs.pipeline import main; main(sys.argv[1:]);"
        "print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    )
    again = run([sys.executable, "-c", code, *setup.job("pipeline", "limit=8")[3:]])
    assert again.returncode == 0, again.stderr
    assert "finished already" in again.stdout
    assert not {"ray", "torch", "transformers"} & set(again.stdout.rpartition("MODULES")[2].split())


def test_the_pipeline_runs_as_a_submitted_job_and_a_wrong_token_is_refused(setup: Setup, clone: Path) -> None:
    with head(clone) as access:
        words = ["jobs.pipeline", str(setup.configs), f"output={setup.output}", "limit=8"]
        refused = submit(clone, access | {"RAY_AUTH_TOKEN": secrets.token_hex(16)}, *words)
        assert refused.returncode != 0
        assert not setup.output.exists()

        done = submit(clone, access, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
        check_whole_run(setup.output)
        check_second_call(setup)

        # Our own command ends with the job's exit status: 2 for a configuration that cannot be run.
        words = ["submit", "rate", str(setup.configs), "output=runs/relative", f"trios={setup.trios}"]
        lost = in_clone(clone, access, str(BIN / "ramo"), *words)
        assert "a submitted job runs in a temporary copy" in lost.stdout
        assert lost.returncode == 2

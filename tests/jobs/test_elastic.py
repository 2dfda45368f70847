"""A run on a cluster that grows with it: Ray's autoscaler adds the nodes, the pool of actors takes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import ROOT, run

pytestmark = pytest.mark.slow
TRIOS = 186


def test_actors_and_nodes_follow_the_queue(tmp_path: Path, long_context_model: Path) -> None:
    program, path = Path(__file__).with_name("elastic.py"), f"{ROOT}:{ROOT / 'tests'}"
    done = run([sys.executable, str(program), str(tmp_path), str(long_context_model)], PYTHONPATH=path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["rated"], found["most"]) == (2 * TRIOS, 1)
    assert (found["counts"]["out"], found["counts"]["pending"], found["counts"]["lost"]) == (TRIOS, 0, 0)
    # All of it while the run went on.
    nodes = found["nodes"]
    assert (nodes[0], max(nodes), min(nodes[nodes.index(3) :])) == (1, 3, 1), found
    rates = found["rate_by_nodes"]
    assert rates["1"] < rates["2"] < rates["3"], found

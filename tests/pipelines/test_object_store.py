"""A run whose tables lie in an object store: a server that speaks S3, on this machine."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fragile import fragile_work

from jobs.flow import run_groups
from ramo_ray.pipelines.store import filesystem

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The query that leads to an empty bucket `runs`."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    query = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1&allow_bucket_creation=true"
    files, _ = filesystem(f"s3://key:secret@runs?{query}")
    files.create_dir("runs")
    yield query
    server.stop()


@pytest.mark.usefixtures("local_ray")
def test_a_run_writes_goes_on_and_is_fenced_in_an_object_store(
    tmp_path: Path, long_context_model: Path, bucket: str
) -> None:
    root = f"s3://key:secret@runs/team/first?{bucket}"
    given = fragile_work(tmp_path, str(long_context_model), 10, root=root)
    assert given.store.claim({"model": "one"}) == []
    result = run_groups(given)
    assert (result.counts["out"], result.counts["pending"]) == (10, 0)
    rows = given.store.read("ratings").to_pylist()
    assert set(Counter(row["conversation_id"] for row in rows).values()) == {1}
    assert len(rows) == given.store.count("ratings") == 20

    # One part is lost, as if the run had been stopped before it was committed: its conversations alone are rated again.
    files, base = filesystem(root)
    lost, *kept = given.store.files("ratings")
    files.delete_file(lost)
    again = run_groups(given)
    assert (again.counts["out"], again.counts["pending"]) == (10, 0)
    assert set(kept) <= set(given.store.files("ratings"))
    ids = [row["conversation_id"] for row in given.store.read("ratings").to_pylist()]
    assert sorted(ids) == sorted(row["conversation_id"] for row in rows)
    assert given.store.claim({"model": "two"}) == ["model was 'one', is 'two'"]
    assert files.get_file_info(f"{base}/groups/index.json").is_file

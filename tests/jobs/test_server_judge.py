"""`rate` with a judge behind a server: its rows, its manifest, and a server that goes away and comes back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as pads
import pytest
from scripted_server import KEY, MODEL, FakeClock, ScriptedServer, refusal, serving
from support import Setup, manifest, run

from jobs.rate import RateConfig, check
from ramo_ray.config import load
from ramo_ray.errors import RamoError, ServerError
from ramo_ray.models.templates import load_tokenizer
from ramo_ray.settings import SPLITS

pytestmark = pytest.mark.slow


@pytest.fixture
def server(long_context_model: Path) -> Iterator[tuple[ScriptedServer, list[str]]]:
    """A chat server that wants a key, and the words that make it the judge."""
    scripted = ScriptedServer(load_tokenizer(long_context_model), ("chat",), FakeClock())
    scripted.models, scripted.key = [{"id": MODEL}], KEY
    with serving(scripted) as url:
        own = [f"base_url={url}", f"model={MODEL}", "api_key_env=JUDGE_KEY", "max_retries=1", "input_price=2.5"]
        words = ["judge.engine=openai", *(f"judge.openai.{word}" for word in own)]
        yield scripted, [*words, f"rated=[{', '.join(SPLITS)}]", "max_bad_fraction=0.5"]


def test_rating_by_a_server_that_goes_and_comes_back(
    setup: Setup, server: tuple[ScriptedServer, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted, words = server
    command = setup.job("rate", f"trios={setup.trios}", *words)

    config = load(RateConfig, setup.configs, command[4:])
    with pytest.raises(RamoError, match=r"openai\.api_key_env = JUDGE_KEY: no such environment variable") as unset:
        check(config)
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    with pytest.raises(ServerError, match="JUDGE_KEY") as refused:
        check(config)
    monkeypatch.delenv("JUDGE_KEY")
    assert "sk-wrong" not in str(refused.value)
    assert (unset.value.exit_status, refused.value.exit_status) == (1, 1)

    # Well at the check and at the actor's start, and then gone.
    scripted.faults = [None] * 30 + [refusal(503)] * 10_000
    gone = run(command, JUDGE_KEY=KEY)
    assert gone.returncode == 1
    assert "answers nothing any more" in gone.stderr
    assert "Traceback" not in gone.stderr
    assert manifest(setup.output)["status"] == "failed"

    scripted.faults = []
    scripted.faulty = {"Gladly. There is much to say about kites": refusal(400, code="content_filter")}
    done = run(command, JUDGE_KEY=KEY)
    assert done.returncode == 0, done.stderr
    found = manifest(setup.output)
    counts, judge = found["counts"], found["judge"]
    assert (counts["rows_in"], counts["rows_out"], counts["quarantined"]) == (10, 9, 1)
    reason = "the judge gave no answer: the server refuses the request: HTTP … Bad Request (content_filter)"
    assert list(counts["reasons"]) == [f"{reason} (tried 3 times)"]
    assert (judge["calls"], judge["cells"]) == (19 * 6, 19 * 6)
    assert judge["requests"] >= 20 * 6
    assert judge["cost"] == pytest.approx(judge["prompt_tokens"] * 2.5 / 1e6, abs=1e-6)
    assert judge["completion_tokens"] > 0
    assert "server: requests" in done.stdout
    assert "server: cost" in done.stdout
    # As it goes on, too.
    assert re.search(r"rating: .* · cost 0\.\d\d", done.stdout)
    files = sorted(map(str, (setup.output / "data/ratings").glob("*.parquet")))
    rows = pads.dataset(files, format="parquet").to_table().to_pylist()
    assert {row["fingerprint"] for row in rows} == {found["fingerprint"]}
    kept = [file for file in setup.output.rglob("*") if file.is_file()]
    assert all(KEY.encode() not in file.read_bytes() for file in kept)
    assert KEY not in done.stdout + done.stderr + gone.stderr

    # A finished run takes up again what it gave up, when more tries are allowed.
    scripted.faulty = {}
    again = run([*command, "judge.max_tries=4"], JUDGE_KEY=KEY)
    assert again.returncode == 0, again.stderr
    found = manifest(setup.output)
    counts = found["counts"]
    assert (counts["rows_in"], counts["rows_out"], counts["quarantined"]) == (10, 10, 0)
    assert found["judge"]["calls"] == 20 * 6

    # What does not decide what comes out may change.
    again = run([*command, "judge.openai.concurrency=2", "judge.openai.base_url=http://127.0.0.1:9/v1"])
    assert again.returncode == 0, again.stderr
    assert json.loads((setup.output / "manifest.json").read_text()) == found

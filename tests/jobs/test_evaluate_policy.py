"""A policy before and after: the job on tiny models, its figures against what they are made of, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from support import Setup, manifest
from tiny import write_adapter, write_moved_model, write_reward_model

from jobs.evaluate_policy import EvaluatePolicyConfig, main
from jobs.policy_scores import outcomes, sort_out
from jobs.reporting import write_report
from ramo_ray.config import load
from ramo_ray.core.records import Prompt, prompt_id
from ramo_ray.core.refusals import refuses
from ramo_ray.core.rules import load_pool
from ramo_ray.errors import ConfigError, FingerprintError, ModelError, SourceError

PROMPTS: list[Prompt] = [
    [{"role": "user", "content": f"Tell me about {thing}."}] for thing in ("bread", "maps", "kites", "lamps")
]
SEEN = PROMPTS[3]


class Run(NamedTuple):
    """A run that ended, and what it is made of."""

    folder: Path
    scores: dict[str, Any]
    rows: list[dict[str, Any]]


Evaluate = Callable[..., Run]


@pytest.fixture
def evaluate(setup: Setup, long_context_model: Path, tmp_path: Path) -> Evaluate:
    """Evaluate a policy that PPO is said to have made of the tiny model, on prompts of which it knows one."""
    pool = load_pool(str(setup.configs.parent / "rules.yaml"))
    write_adapter(long_context_model, tmp_path / "adapter", pool.ids)
    write_reward_model(long_context_model, tmp_path / "reward", spread=1)
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "evaluation"
    rows = [{"prompt": prompt} for prompt in [*PROMPTS, PROMPTS[0], 7]]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        f"output={folder}",
        f"prompts={prompts}",
        f"before.model={long_context_model}",
        "before.actors.num_cpus=0.25",
        "before.sampling.max_tokens=12",
        f"adapter_model={tmp_path / 'adapter'}",
        f"reward_model={tmp_path / 'reward'}",
    ]

    def go(policy: Path, *words: str) -> Run:
        main(load(EvaluatePolicyConfig, setup.configs, [*given, f"policy={policy}", *words]))
        answers = pq.read_table(folder / "data/answers.parquet").to_pylist()
        return Run(folder, json.loads((folder / "scores.json").read_text()), answers)

    return go


def aligned(model: Path, tmp_path: Path, *, by: float) -> Path:
    """A policy as train_policy leaves it: its prompts and its configuration beside it."""
    folder = tmp_path / "train_policy"
    folder.mkdir()
    write_moved_model(model, folder / "model", by=by)
    (folder / "prompts.jsonl").write_text(json.dumps({"input": "", "label": json.dumps(SEEN)}) + "\n")
    (folder / "config.json").write_text(json.dumps({"policy": str(model), "policy_revision": None}))
    (folder / "manifest.json").write_text(json.dumps({"job": "train_policy"}))
    return folder / "model"


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_figures_are_those_of_the_answers(evaluate: Evaluate, long_context_model: Path, tmp_path: Path) -> None:
    policy = aligned(long_context_model, tmp_path, by=0.02)
    sampling = ("before.sampling.temperature=1.0", "before.sampling.top_p=1.0")
    run = evaluate(policy, *sampling, "max_bad_fraction=0.9")
    rows, scores, counts = run.rows, run.scores, manifest(run.folder)["counts"]
    # One that it knows, one twice, one that is no prompt.
    assert (counts["rows_in"], counts["other_split"], counts["rows_out"]) == (6, 1, len(rows))
    assert counts["quarantined"] == 5 - len(rows)
    assert counts["reasons"]["the same prompt again"] == 1
    assert (scores["prompts"], scores["prompts_seen"], scores["same_answers"]) == (len(rows), 0, 0)
    assert {row["prompt_id"] for row in rows} <= {prompt_id(prompt) for prompt in PROMPTS[:3]}

    check_rewards(run, tmp_path / "reward")
    for side in ("before", "after"):
        assert [row[f"tokens_{side}"] for row in rows] == [len(row[side].encode()) for row in rows]
        assert scores["tokens"][side]["value"] == pytest.approx(mean(row[f"tokens_{side}"] for row in rows))
        assert [row[f"refusal_{side}"] for row in rows] == [refuses(row[side]) for row in rows]
    assert all(row["kl"] > 0 for row in rows)
    assert scores["kl"]["value"] == pytest.approx(mean(row["kl"] for row in rows))
    tokens = sum(row["tokens_after"] for row in rows)
    assert scores["kl_a_token"]["value"] == pytest.approx(sum(row["kl"] for row in rows) / tokens)

    labels = pq.read_table(run.folder / "parts/label/data/preferences").to_pylist()
    after = {row["prompt_id"]: row["after"] for row in rows}
    chosen = {prompt_id(row["prompt"]): row["chosen"][0]["content"] for row in labels if not row["tie"]}
    assert {row["prompt_id"]: row["outcome"] for row in rows if row["prompt_id"] in chosen} == {
        prompt: float(after[prompt] == text) for prompt, text in chosen.items()
    }
    assert scores["wins"] + scores["ties"] + scores["losses"] == len(labels) == len(rows)

    page = write_report(run.folder).read_text()
    assert "win rate by the judge" in page
    assert "reward after" in page
    first = manifest(run.folder)
    assert evaluate(policy, *sampling, "max_bad_fraction=0.9").scores == scores
    assert manifest(run.folder) == first


def check_rewards(run: Run, folder: Path) -> None:
    from ramo_ray.models.reward import RewardModel
    from ramo_ray.models.templates import load_tokenizer, reward_token_ids

    model, tokenizer = RewardModel(folder), load_tokenizer(folder)
    for side in ("before", "after"):
        own = model.score([reward_token_ids(tokenizer, row["prompt"], row[side]) for row in run.rows])
        assert [row[f"reward_{side}"] for row in run.rows] == pytest.approx(own, abs=1e-4)
        assert run.scores["reward"][side]["value"] == pytest.approx(float(own.mean()), abs=1e-4)


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_policy_that_did_not_move_is_no_better_and_no_worse(
    evaluate: Evaluate, long_context_model: Path, tmp_path: Path
) -> None:
    scores = evaluate(aligned(long_context_model, tmp_path, by=0.0), "unseen=false", "max_bad_fraction=0.9").scores
    assert scores["prompts"] == scores["same_answers"] == scores["ties"] > 1
    assert scores["prompts_seen"] <= 1
    assert (scores["wins"], scores["losses"], scores["kl"]["value"]) == (0, 0, 0.0)
    assert scores["win_rate"]["value"] == 0.5
    for name in ("reward", "tokens", "refusal"):
        assert set(scores[name]["difference"].values()) == {0.0}


@pytest.mark.slow
def test_what_does_not_belong_together_is_refused(
    evaluate: Evaluate, long_context_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    policy = aligned(long_context_model, tmp_path, by=0.0)
    with pytest.raises(ConfigError, match=r"was aligned from .*Set before\.model="):
        evaluate(policy, f"before.model={tiny_model}")
    with pytest.raises(ConfigError, match="engine scripted has no weights"):
        evaluate(policy, "before.engine=scripted")
    with pytest.raises(ConfigError, match=r"`policy`: .* does not exist\. Run train_policy first"):
        evaluate(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"`before\.revision` = main, but .*Set before\.revision=null"):
        evaluate(policy, "before.revision=main")
    with pytest.raises(ModelError, match="is a language model, and a reward model has one output"):
        evaluate(policy, f"reward_model={tiny_model}")
    with pytest.raises(ModelError, match="is no Rule Adapter but a language model"):
        evaluate(policy, f"adapter_model={tiny_model}")
    template = policy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ModelError, match="is no later state of that policy"):
        evaluate(policy)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_run_that_stopped_goes_on_with_what_it_was_made_of_only(
    evaluate: Evaluate, long_context_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = aligned(long_context_model, tmp_path, by=0.02)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    # So short that the judge cannot read any of it.
    words = ("max_bad_fraction=0.9", "judge.max_length=600")
    with monkeypatch.context() as patched:
        patched.setattr("jobs.label.main", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(policy, *words)
    answers = tmp_path / "evaluation/parts/answers/manifest.json"
    written = answers.read_text()
    with pytest.raises(ConfigError, match="a run with other settings: unseen was True, is False"):
        evaluate(policy, *words, "unseen=false")
    prompts = tmp_path / "prompts.jsonl"
    before = prompts.read_text()
    prompts.write_text(before + json.dumps({"prompt": "Another one?"}) + "\n")
    with pytest.raises(FingerprintError, match="holds answers of another origin: prompts was"):
        evaluate(policy, *words)
    prompts.write_text(before)
    # No figure is of prompts that the judge gave no outcome on.
    with pytest.raises(SourceError, match=r"no prompt is left.*too long for the judge"):
        evaluate(policy, *words)
    assert answers.read_text() == written


@pytest.mark.slow
def test_prompts_that_the_policy_knows_are_not_what_it_is_measured_by(
    evaluate: Evaluate, long_context_model: Path, tmp_path: Path
) -> None:
    only = tmp_path / "seen.jsonl"
    only.write_text(json.dumps({"prompt": SEEN}) + "\n")
    with pytest.raises(ConfigError, match=r"aligned on all 1 of them\. Give others, or set unseen=false"):
        evaluate(aligned(long_context_model, tmp_path, by=0.0), f"prompts={only}")


def test_what_is_not_known_of_a_prompt_leaves_it_out_of_every_figure() -> None:
    known = {"outcome": 1.0, "reward_before": 0.0, "reward_after": 1.0, "kl": 0.1}
    rows = [
        known | {"prompt_id": "a"},
        known | {"prompt_id": "b", "outcome": None},
        known | {"prompt_id": "c", "outcome": None},
        known | {"prompt_id": "d", "reward_after": None},
        known | {"prompt_id": "e", "kl": None},
    ]
    complete, bad = sort_out(rows, {"b": "too long for the adapter"})
    assert complete == rows[:1]
    assert [(row["id"], row["reason"].split(" (")[0]) for row in bad] == [
        ("b", "too long for the adapter"),
        ("c", "the judge gave no preference"),
        ("d", "too long for the reward model"),
        ("e", "too long for the policies' context"),
    ]


def test_an_outcome_is_a_win_of_whichever_side_the_policy_is_on() -> None:
    sources = {"p": ("after", "before"), "q": ("before", "after"), "r": ("before", "after"), "s": ("before", "after")}
    trios = [
        {"trio_id": prompt, "prompt_id": prompt, "source_a": a, "source_b": b} for prompt, (a, b) in sources.items()
    ]
    labels = [
        {"trio_id": "p", "chosen_is": "a", "tie": False},
        {"trio_id": "q", "chosen_is": "a", "tie": False},
        {"trio_id": "r", "chosen_is": "b", "tie": True},
        {"trio_id": "s", "chosen_is": "b", "tie": False},
    ]
    assert outcomes(trios, labels) == {"p": 1.0, "q": 0.0, "r": 0.5, "s": 1.0}

"""A run's tables and manifests to the rows that the report shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from jobs.overview import manifests
from jobs.stage import read_json, write_text
from ramo_ray.core.rules import load_pool
from ramo_ray.evaluation import report_data as rd
from ramo_ray.evaluation.report import MAX_TRIOS, render
from ramo_ray.step_log import read_rows

MAX_CELLS = 4000
"""Cells (trio and rule) in the plot of both terms of equation 12; more are sampled."""
CURVES = ("loss", "learning_rate", "accuracy")
POLICY_CURVES = {
    "reward": "rollout/reward_mean",
    "kl": "kl",
    "length": "rollout/response_length_mean",
    "entropy": "entropy_loss",
}
"""What the report calls them, and OpenRLHF."""
MAX_SAMPLES = 10
"""Responses of the policy that the page holds, spread over the steps."""
Row = dict[str, Any]


def write_report(run: Path) -> Path:
    """Write `report.html` into a run's folder, with whatever stages are there; give its path."""
    target = run / "report.html"
    write_text(target, render(collect(run)))
    return target


def collect(run: Path) -> rd.ReportData:
    """Read everything that the report shows from a pipeline's folder (or one job's)."""
    found = manifests(run)
    folders = {name: run if (run / "manifest.json").exists() else run / name for name in found}
    configs = {name: read_json(folder / "config.json") for name, folder in folders.items()}
    pool = load_pool(_pool_file(configs))
    critical = _rows(folders, "train_adapter", "critical")
    preferences = _rows(folders, "label", "preferences")
    scores = found.get("evaluate_reward", {}).get("scores", {})
    judge = _first(configs, "judge") or {}
    gamma = float(configs.get("train_adapter", {}).get("selection", {}).get("gamma", 0.0))
    return rd.ReportData(
        title="RAMO run",
        output=str(run),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=_facts(configs),
        judge=rd.Judge(engine=judge["engine"], model=_judge_name(judge) or "") if judge else None,
        pair_accuracy=_estimate(scores.get("pair_accuracy")),
        label_agreement=_estimate(scores.get("label_agreement")),
        reward_agreement=_estimate(scores.get("reward_agreement")),
        label_counts=_label_counts(preferences),
        selectors=_selectors(found.get("train_adapter", {})),
        stages=[_cost(name, manifest) for name, manifest in found.items()],
        savings=_savings(found.get("label", {})),
        rules=[rd.Rule(index=rule.index, id=rule.id, text=rule.text) for rule in pool.rules],
        rule_use=_rule_use(critical, len(pool)),
        terms=_terms(critical, gamma),
        example=_example(critical, gamma),
        training=[curve for name in ("train_adapter", "train_reward") if (curve := _curve(folders, name)) is not None],
        policy=_policy(folders),
        policy_change=_policy_change(folders, found.get("evaluate_policy", {}), configs.get("evaluate_policy", {})),
        reward_margins=_margins(folders),
        trios=[_labelled(row) for row in preferences[:MAX_TRIOS]],
        trio_count=len(preferences) if preferences else None,
        quarantine=[
            rd.QuarantineCount(stage=name, reason=reason, rows=count)
            for name, manifest in found.items()
            for reason, count in manifest.get("counts", {}).get("reasons", {}).items()
        ],
        versions=next((m["versions"] for m in reversed(found.values()) if "versions" in m), {}),
        fingerprints={f"{name}: {key}": m[key] for name, m in found.items() for key in m if "fingerprint" in key},
        config=configs,
    )


def _pool_file(configs: dict[str, Row]) -> str:
    """The pool's file as the stages found it: a relative one lies under `storage.root`, where that is set."""
    rules, root = _first(configs, "rules") or "", (_first(configs, "storage") or {}).get("root", "")
    return str(Path(root).expanduser() / rules) if rules and root else rules


def _first(configs: dict[str, Row], key: str) -> Any:
    return next((config[key] for config in configs.values() if config.get(key)), None)


def _facts(configs: dict[str, Row]) -> dict[str, str]:
    judge = _first(configs, "judge") or {}
    selection = _first(configs, "selection") or {}
    training = {
        name: configs.get(name, {}).get("training", {}).get("model") for name in ("train_adapter", "train_reward")
    }
    facts = {
        "source": _first(configs, "trios") or _first(configs, "prompts"),
        "judge": _judge_name(judge),
        "layout": judge.get("layout"),
        "method": judge.get("method"),
        "r": selection.get("r"),
        "γ": selection.get("gamma"),
        "embedder": (_first(configs, "embedder") or {}).get("model"),
        "adapter from": training["train_adapter"],
        "reward model from": training["train_reward"],
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _judge_name(judge: Row) -> str | None:
    """The model that answers: with a server that is its own, and `model` has only the tokenizer."""
    served: str = judge.get("openai", {}).get("model", "")
    return served if judge.get("engine") == "openai" else judge.get("model")


def _rows(folders: dict[str, Path], stage: str, table: str) -> list[Row]:
    import pyarrow.dataset as pads

    if stage not in folders:
        return []
    files = sorted(str(file) for file in (folders[stage] / "data" / table).glob("*.parquet"))
    rows: list[Row] = pads.dataset(files, format="parquet").to_table().to_pylist() if files else []
    return sorted(rows, key=lambda row: str(row["trio_id"]))


def _estimate(value: Row | None) -> rd.Estimate | None:
    return rd.Estimate(**value) if value else None


def _label_counts(preferences: Sequence[Row]) -> rd.LabelCounts | None:
    if not preferences:
        return None
    chosen = [row["chosen_is"] for row in preferences]
    return rd.LabelCounts(a=chosen.count("a"), b=chosen.count("b"), ties=sum(row["tie"] for row in preferences))


def _selectors(manifest: Row) -> rd.SelectorComparison | None:
    if "scores" not in manifest:
        return None
    scores = [rd.SelectorScores(name=name, **values) for name, values in manifest["scores"].items()]
    return rd.SelectorComparison(
        r=manifest["r"], trios=manifest["counts"]["held_out"], adapter=scores[0], baselines=scores[1:]
    )


def _cost(name: str, manifest: Row) -> rd.StageCost:
    counts, judge = manifest.get("counts", {}), manifest.get("judge", {})
    return rd.StageCost(
        name=name,
        status=manifest["status"],
        rows_in=counts.get("rows_in"),
        rows_out=counts.get("rows_out"),
        quarantined=counts.get("quarantined"),
        other_split=counts.get("other_split"),
        truncated=counts.get("truncated"),
        judge_calls=judge.get("calls"),
        tokens=judge.get("tokens", manifest.get("tokens")),
        seconds=manifest.get("seconds"),
    )


def _savings(manifest: Row) -> rd.Savings | None:
    savings = manifest.get("savings")
    if not savings:
        return None
    return rd.Savings(
        trios=manifest["counts"]["rows_out"],
        calls_per_trio=savings["calls_a_trio"],
        calls_per_trio_all_rules=savings["calls_a_trio_all_rules"],
        calls_saved=savings["calls_saved"],
        seconds_saved=savings["seconds_saved"],
    )


def _rule_use(critical: Sequence[Row], rules: int) -> rd.RuleUse | None:
    if not critical:
        return None
    counts = np.zeros(rules, dtype=np.int64)
    for row in critical:
        counts[row["critical"]] += 1
    return rd.RuleUse(counts=counts, trios=len(critical))


def _terms(critical: Sequence[Row], gamma: float) -> rd.SelectionTerms | None:
    if not critical:
        return None
    discrepancy = np.abs(_array(critical, "scores_a") - _array(critical, "scores_b"))
    relevance = _array(critical, "relevance")
    chosen = np.zeros(discrepancy.shape, dtype=bool)
    for place, row in enumerate(critical):
        chosen[place, row["critical"]] = True
    groups = {}
    for name, mask in (("critical", chosen), ("other", ~chosen)):
        cells = np.argwhere(mask)
        kept = cells[np.random.default_rng(0).permutation(len(cells))[:MAX_CELLS]]
        groups[f"{name}_discrepancy"] = discrepancy[kept[:, 0], kept[:, 1]]
        groups[f"{name}_relevance"] = relevance[kept[:, 0], kept[:, 1]]
    return rd.SelectionTerms(gamma=gamma, **groups)


def _array(rows: Sequence[Row], key: str) -> np.ndarray:
    return np.array([row[key] for row in rows], dtype=np.float64)


def _example(critical: Sequence[Row], gamma: float) -> rd.TrioRatings | None:
    """The trio whose two responses differ most: the one that shows the selection best."""
    if not critical:
        return None
    row = max(critical, key=lambda row: float(np.abs(np.subtract(row["scores_a"], row["scores_b"])).max()))
    return rd.TrioRatings(
        trio_id=row["trio_id"],
        scores_a=np.array(row["scores_a"]),
        scores_b=np.array(row["scores_b"]),
        relevance=np.array(row["relevance"]),
        gamma=gamma,
        critical=row["critical"],
    )


def _curve(folders: dict[str, Path], stage: str) -> rd.TrainingCurve | None:
    rows = read_rows(folders[stage] / "metrics.jsonl") if stage in folders else []
    columns = {key: np.array([row[key] for row in rows], dtype=np.float64) for key in CURVES}
    return rd.TrainingCurve(name=stage, steps=np.array([row["step"] for row in rows]), **columns) if rows else None


def _policy(folders: dict[str, Path]) -> rd.PolicyTraining | None:
    folder = folders.get("train_policy")
    rows = read_rows(folder / "metrics.jsonl") if folder else []
    if not folder or not rows:
        return None
    samples = read_rows(folder / "samples.jsonl")
    last = len(samples) - 1
    chosen = sorted({round(last * n / (MAX_SAMPLES - 1)) for n in range(MAX_SAMPLES)}) if samples else []
    return rd.PolicyTraining(
        steps=np.array([row["step"] for row in rows]),
        **{name: np.array([row.get(key, np.nan) for row in rows]) for name, key in POLICY_CURVES.items()},
        samples=[rd.PolicySample(**samples[place]) for place in chosen],
    )


def _policy_change(folders: dict[str, Path], manifest: Row, config: Row) -> rd.PolicyChange | None:
    scores = manifest.get("scores")
    if not scores:
        return None
    import pyarrow.parquet as pq

    rows = pq.read_table(folders["evaluate_policy"] / "data" / "answers.parquet").to_pylist()
    rewards = [(row["reward_after"], row["reward_before"]) for row in rows]
    samples = [
        rd.PolicyAnswers(**{key: row[key] for key in ("prompt", "before", "after", "reward_before", "reward_after")})
        for row in rows[:MAX_SAMPLES]
    ]
    judge = config["judge"]
    return rd.PolicyChange(
        judge=rd.Judge(engine=judge["engine"], model=_judge_name(judge) or ""),
        **{key: scores[key] for key in ("prompts", "same_answers", "wins", "ties", "losses")},
        seen=scores["prompts_seen"],
        reward=_measure(scores["reward"]),
        tokens=_measure(scores["tokens"]),
        refusal=_measure(scores["refusal"]),
        win_rate=_estimate(scores["win_rate"]),
        kl=_measured(scores["kl"]),
        kl_a_token=_measured(scores["kl_a_token"]),
        differences=np.array([after - before for after, before in rewards if None not in (after, before)]),
        samples=samples,
    )


def _measure(value: Row | None) -> rd.PolicyMeasure | None:
    if value is None:
        return None
    sides = {key: rd.Measured(**value[key]) for key in ("before", "after", "difference")}
    return rd.PolicyMeasure(**sides, count=value["count"])


def _measured(value: Row | None) -> rd.Measured | None:
    return rd.Measured(**{key: value[key] for key in ("value", "low", "high")}) if value else None


def _margins(folders: dict[str, Path]) -> np.ndarray | None:
    import pyarrow.parquet as pq

    file = folders.get("evaluate_reward", Path()) / "data" / "rewards.parquet"
    if "evaluate_reward" not in folders or not file.exists():
        return None
    rows = pq.read_table(file).to_pylist()
    known = [(row["reward_chosen"], row["reward_rejected"]) for row in rows]
    return np.array([chosen - rejected for chosen, rejected in known if None not in (chosen, rejected)])


def _labelled(row: Row) -> rd.LabelledTrio:
    human = None if row["label"] is None else ("a", "b")[row["label"]]
    keys = (
        "trio_id",
        "prompt",
        "chosen_is",
        "rule_ids",
        "scores_chosen",
        "scores_rejected",
        "margin",
        "tie",
        "truncated",
    )
    texts = {side: row[side][0]["content"] for side in ("chosen", "rejected")}
    return rd.LabelledTrio(**{key: row[key] for key in keys}, **texts, human=human)  # type: ignore[arg-type]

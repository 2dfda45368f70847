"""Answers of a policy before and after its alignment, and the figures by which the two are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ramo_ray.core.change import RESAMPLES, change
from ramo_ray.core.refusals import refuses
from ramo_ray.core.resampling import Estimate, estimate, prompt_weights, ratios, share
from ramo_ray.pipelines.responses import REPEATED

Row = dict[str, Any]
BEFORE, AFTER = "before", "after"
TIE = 0.5
"""What a tie counts of a win."""


class Answers(NamedTuple):
    """Prompts with both answers, and why others lack one."""

    rows: list[Row]
    bad: list[Row]


def read_answers(folder: Path) -> Answers:
    """What generate_responses wrote, as one row a prompt: `prompt_id`, `prompt`, `before` and `after`."""
    prompts: dict[str, Row] = {}
    for one in table(folder / "data" / "conversations"):
        row = prompts.setdefault(one["prompt_id"], {key: one[key] for key in ("prompt_id", "prompt")})
        row[one["source"]] = one["response"]
    bad: dict[str, Row] = {}
    for fault in table(folder / "quarantine.parquet"):
        if fault["reason"] == REPEATED and BEFORE in prompts.get(fault["id"], {}):
            prompts[fault["id"]][AFTER] = prompts[fault["id"]][BEFORE]
        else:
            bad.setdefault(fault["id"], fault)
    rows = [row for row in prompts.values() if row.keys() >= {BEFORE, AFTER}]
    return Answers(sorted(rows, key=lambda row: str(row["prompt_id"])), list(bad.values()))


def table(path: Path) -> list[Row]:
    """Rows of a table: a file, or a folder of committed parts; none where it is not there."""
    import pyarrow.dataset as pads

    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    rows: list[Row] = pads.dataset([str(file) for file in files], format="parquet").to_table().to_pylist()
    return rows


def outcomes(trios: Sequence[Mapping[str, Any]], preferences: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By prompt id, what the judge's preference is worth to the policy after: 1 for a win, 0 for a loss."""
    of = {trio["trio_id"]: trio for trio in trios}
    found = {}
    for row in preferences:
        trio = of[row["trio_id"]]
        won = trio[f"source_{row['chosen_is']}"] == AFTER
        found[trio["prompt_id"]] = TIE if row["tie"] else float(won)
    return found


def with_outcomes(rows: Sequence[Row], judged: Mapping[str, float]) -> list[Row]:
    """Rows with `outcome`, a tie where both answers are the same, None where the judge gave none; and refusals."""
    return [
        row
        | {"outcome": TIE if row[BEFORE] == row[AFTER] else judged.get(row["prompt_id"])}
        | {f"refusal_{side}": refuses(row[side]) for side in (BEFORE, AFTER)}
        for row in rows
    ]


def sort_out(rows: Sequence[Row], reasons: Mapping[str, str]) -> tuple[list[Row], list[Row]]:
    """Rows of which everything is known, and rows for the quarantine: all figures are of the same prompts.

    `reasons` says by prompt why the judge has no outcome.
    """
    complete, bad = list[Row](), list[Row]()
    for row in rows:
        reason = None
        if row["outcome"] is None:
            reason = reasons.get(row["prompt_id"], "the judge gave no preference")
        elif row["reward_before"] is None or row["reward_after"] is None:
            reason = "too long for the reward model (reward.max_length), or of roles that its template refuses"
        elif row["kl"] is None:
            reason = "too long for the policies' context"
        if reason is None:
            complete.append(row)
        else:
            bad.append({"origin": "evaluate_policy", "id": row["prompt_id"], "reason": reason})
    return complete, bad


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def policy_scores(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """The figures of `scores.json`.

    Args:
        rows: one a prompt, complete, with `outcome`, `kl`, and before and after `reward`, `tokens` and `refusal`.
        seed: of the resamples.
    """
    judged = [row["outcome"] for row in rows]
    return {
        "prompts": len(rows),
        "same_answers": sum(row[BEFORE] == row[AFTER] for row in rows),
        "reward": _changed(rows, "reward", seed),
        "tokens": _changed(rows, "tokens", seed),
        "refusal": _changed(rows, "refusal", seed, shares=True),
        "win_rate": _mean(judged, seed),
        "wins": judged.count(1.0),
        "ties": judged.count(TIE),
        "losses": judged.count(0.0),
        "kl": _ratio([row["kl"] for row in rows], [1.0] * len(rows), seed),
        "kl_a_token": _ratio([row["kl"] for row in rows], [row["tokens_after"] for row in rows], seed),
    }


def _changed(rows: Sequence[Row], name: str, seed: int, *, shares: bool = False) -> dict[str, Any] | None:
    before, after = (np.array([row[f"{name}_{side}"] for row in rows], dtype=np.float64) for side in (BEFORE, AFTER))
    found = change(before, after, seed, shares=shares)
    if found is None:
        return None
    values = {key: getattr(found, key)._asdict() for key in (BEFORE, AFTER, "difference")}
    return values | {"count": found.prompts}


def _mean(values: Sequence[float], seed: int) -> dict[str, Any] | None:
    if len(values) < 2:
        return None
    weights = prompt_weights(len(values), RESAMPLES, seed)
    return _counted(share(np.array(values), np.ones(len(values)), weights), len(values))


def _ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int) -> dict[str, Any] | None:
    if len(numerators) < 2:
        return None
    weights = prompt_weights(len(numerators), RESAMPLES, seed)
    return _counted(estimate(ratios(np.array(numerators), np.array(denominators), weights)), len(numerators))


def _counted(found: Estimate | None, count: int) -> dict[str, Any] | None:
    return found._asdict() | {"count": count} if found else None


def score_lines(scores: Mapping[str, Any]) -> dict[str, object]:
    """What the terminal shows of the figures."""
    names = {"reward": "reward", "tokens": "tokens of an answer", "refusal": "share of refusals"}
    lines: dict[str, object] = {"prompts": scores["prompts"]}
    if scores["prompts_seen"]:
        lines["of these, the policy was aligned on"] = scores["prompts_seen"]
    for key, name in names.items():
        if value := scores[key]:
            before, after = (value[side]["value"] for side in (BEFORE, AFTER))
            lines[name] = f"{before:.3f} → {after:.3f}  difference {_shown(value['difference'], '+.3f')}"
    if value := scores["win_rate"]:
        lines["win rate by the judge"] = _shown(value, ".3f")
    lines["won, tied, lost"] = f"{scores['wins']}, {scores['ties']}, {scores['losses']}"
    if value := scores["kl"]:
        lines["KL from the policy before, nats an answer"] = _shown(value, ".4f")
    return lines


def _shown(value: Mapping[str, float], form: str) -> str:
    """A figure with its interval; without, where nothing varied that an interval could be told from."""
    interval = f" [{value['low']:{form}}, {value['high']:{form}}]" if value["low"] < value["high"] else ""
    return f"{value['value']:{form}}{interval}"

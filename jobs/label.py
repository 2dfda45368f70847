"""Trios to preferences: the Rule Adapter picks r rules of each trio, the judge rates those, the higher mean wins."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from jobs.display import heading, server_lines, summary, truncated_line
from jobs.inputs import CheckedJudge, TrioStageConfig, check_judge, earlier, open_source, rule_pool
from jobs.rate import judge_totals
from jobs.session import ray_session
from jobs.stage import Stage, locate, open_stage, read_json
from ramo_ray.config import run
from ramo_ray.core.records import fingerprint
from ramo_ray.errors import ConfigError
from ramo_ray.settings import AdapterSettings, JudgeSettings, SelectionSettings, Split

if TYPE_CHECKING:
    from ramo_ray.pipelines.shards import Grouped

TABLES = ("failures", "ratings", "preferences")
SPLITTING = ("trios", "limit", "source", "splits")
"""What decides which prompts are in which split."""


class LabelConfig(TrioStageConfig):
    job: ClassVar[str] = "label"
    labelled: Annotated[tuple[Split, ...], Field(min_length=1)] | Literal["all"] = ("reward_train", "reward_test")
    """Splits that are labelled. `all` labels every trio, and splits none."""
    model: str = ""
    """Folder of the Rule Adapter. Empty: what train_adapter wrote in `run`."""
    adapter: AdapterSettings = AdapterSettings()
    generation: PositiveInt = 1
    """Which set of results this is. A higher number begins anew beside those of another judge, layout or template."""
    judge: JudgeSettings = JudgeSettings()
    selection: SelectionSettings = SelectionSettings()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The splits that are labelled, as a source has them: one without a name where nothing is split."""
        return ("",) if self.labelled == "all" else self.labelled


def check(config: LabelConfig) -> CheckedJudge:
    """Refuse, before anything starts, a pool, a rule budget, an adapter or a judge that cannot be used."""
    from ramo_ray.models.adapter import check_adapter

    pool = rule_pool(config, config.selection.r)
    if config.model:
        check_adapter(earlier(config, "model", config.model, "", ""), pool.ids)
    return check_judge(config.judge, pool)


def _check_disjoint(config: LabelConfig) -> None:
    """Refuse to split otherwise than `rate` did in the same run: what was rated on all rules could be labelled then."""
    if config.run and config.labelled == "all":
        raise ConfigError(
            f"`labelled` = all, with `run` = {config.run}: that run's adapter was trained on some of these trios. Name "
            "the splits to label, or leave `run` out and name `model`."
        )
    rated = read_json(locate(config, "run", config.run) / "rate" / "config.json") if config.run else {}
    own = config.model_dump(mode="json")
    other = [key for key in SPLITTING if rated and rated.get(key) != own[key]]
    if other:
        raise ConfigError(
            f"`{other[0]}` = {own[other[0]]!r}, but {config.run}/rate had {rated.get(other[0])!r}: the splits would "
            "not be disjoint. Give both the same, or leave `run` out and name `model`."
        )


def main(config: LabelConfig) -> list[str]:
    """Label trios by the rules that the adapter picks: 2 · r judge calls a trio."""
    with open_stage(config) as stage:
        if stage.gave_up_too_early(config.judge.max_tries):
            stage.reopen()
        if not stage.finished:
            _label(config, stage)
        counts, judge, savings = (stage.manifest[key] for key in ("counts", "judge", "savings"))
        summary(
            f"preferences in {stage.data / 'preferences'}",
            {
                "trios labelled": counts["rows_out"],
                "judge calls": judge["calls"],
                "judge calls a trio": savings["calls_a_trio"],
                "calls saved against all rules": savings["calls_saved"],
                "seconds saved against all rules": savings["seconds_saved"],
                "ties": counts["ties"],
                "quarantined trios": counts["quarantined"],
                **truncated_line(counts),
                **server_lines(judge),
            },
        )
    # Where nothing is split, nothing is set apart to train on.
    return [] if config.labelled == "all" else [stage.next_job("train_reward", preferences=stage.data / "preferences")]


def _label(config: LabelConfig, stage: Stage) -> None:
    from jobs.flow import Work, run_groups
    from ramo_ray.models.adapter import check_adapter
    from ramo_ray.models.resolve import identity
    from ramo_ray.pipelines import labeling, rating
    from ramo_ray.pipelines.progress import Goal
    from ramo_ray.pipelines.store import PartStore

    heading("Preferences")
    _check_disjoint(config)
    pool = rule_pool(config, config.selection.r)
    adapter = earlier(config, "model", config.model, config.run, "train_adapter/model")
    check_adapter(adapter, pool.ids)
    judge = check(config)
    adapter_identity = identity(adapter)
    own = {
        "adapter": adapter_identity,
        "r": config.selection.r,
        "tie_tolerance": config.selection.tie_tolerance,
        "aggregation": "mean",
        **_selection_of(adapter),
    }
    label_fingerprint = fingerprint(judge=judge.fingerprint, **own)
    store = PartStore(str(stage.data), TABLES)
    stage.claim(store, judge.origin | own)

    def through(groups: Any, overseer: Any) -> Any:
        picked = labeling.pick_rules(groups, config.adapter, str(adapter), pool.ids, config.selection.r, overseer)
        return rating.rate(picked, judge.settings, pool.texts, "picked_rules", overseer)

    work = Work(
        title=rating.TITLES["picked_rules"],
        source=open_source(config),
        shares=None if config.labelled == "all" else config.splits,
        wanted=config.wanted,
        store=store,
        goal=Goal("trios", "preferences", config.judge.max_tries, tuple(pool.ids)),
        block=config.judge.batch_size,
        part=config.storage.part_groups or config.judge.batch_size,
        actors=config.judge.actors,
        tell=stage.tell,
        spent=stage.spent,
        through=through,
        convert=partial(
            labeling.label_rows,
            tie_tolerance=config.selection.tie_tolerance,
            fingerprint=label_fingerprint,
            judge_fingerprint=judge.fingerprint,
        ),
    )
    with ray_session(config.ray):
        result = run_groups(work)
    grouped, sums = result.grouped, store.totals()
    counts = stage.counts(
        rows_in=grouped.rows,
        rows_out=result.counts["out"],
        other_split=grouped.others(config.wanted),
        bad=result.bad(),
    )
    counts |= {
        "given_up": result.counts["lost"],
        "ties": int(sums["tie=True"]),
        "truncated": int(sums["truncated=True"]),
        "chosen_a": int(sums["chosen_is=a"]),
        "chosen_b": int(sums["chosen_is=b"]),
    }
    totals = judge_totals(sums) | {"adapter_seconds": round(sums["adapter_seconds"], 2)}
    stage.finish(
        counts=counts,
        judge=totals,
        savings=_savings(config, totals, result.counts["out"], grouped, len(pool)),
        fingerprint=label_fingerprint,
        judge_fingerprint=judge.fingerprint,
        max_tries=config.judge.max_tries,
        adapter=adapter_identity,
        rules=pool.fingerprint,
    )


def _selection_of(adapter: Path) -> dict[str, Any]:
    """γ and embedder that the adapter's training targets were selected with, where it came out of a stage of ours."""
    config = read_json(adapter.parent / "config.json")
    return {"gamma": config.get("selection", {}).get("gamma"), "embedder": config.get("embedder", {}).get("model")}


def _savings(
    config: LabelConfig, judge: dict[str, float], trios: int, grouped: Grouped, rules: int
) -> dict[str, float]:
    """What the adapter saved: calls against rating these trios' conversations on all rules, and the judge's seconds.

    Seconds a call of all-rules rating are those that `rate` measured in the same run, where it is known; a call is
    cheaper there, as 100 rules share a conversation. What the adapter took to pick the rules is counted as spent.
    """
    conversations = sum(grouped.conversations[split] for split in config.wanted)
    all_rules = conversations * rules
    rate_manifest = locate(config, "run", config.run) / "rate" / "manifest.json" if config.run else None
    rated = read_json(rate_manifest).get("judge", {}) if rate_manifest else {}
    measured = rated if rated.get("calls") else judge
    seconds_a_call = measured["seconds"] / measured["calls"] if measured["calls"] else 0.0
    spent = judge["seconds"] + judge["adapter_seconds"]
    return {
        "calls_a_trio": round(judge["calls"] / trios, 3) if trios else 0.0,
        "calls_a_trio_all_rules": round(all_rules / trios, 3) if trios else 0.0,
        "calls_all_rules": all_rules,
        "calls_saved": int(all_rules - judge["calls"]),
        "seconds_all_rules": round(all_rules * seconds_a_call, 2),
        "seconds_spent": round(spent, 2),
        "seconds_saved": round(all_rules * seconds_a_call - spent, 2),
    }


if __name__ == "__main__":
    run(main)

"""Rating in several ways as one Ray Data stage: one engine answers all of them, group by group.

Ways take turns on each batch, so that what slows the machine down slows all of them down, and an engine is loaded once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ramo_ray.core.comparison import RatedWays
from ramo_ray.errors import SourceError
from ramo_ray.pipelines.actors import Bill, in_blocks, pool_options
from ramo_ray.pipelines.rating import TITLES, RuleJudge, rating_rows
from ramo_ray.pipelines.tables import packed, unpacked
from ramo_ray.settings import JudgeSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from ramo_ray.pipelines.store import PartStore

Group = dict[str, Any]
WARM_RULES = 4
"""Rules that each way is asked of a made-up conversation first: an engine's first calls are slow."""
COSTS = ("calls", "tokens", "seconds")


class JudgedWay(NamedTuple):
    """One way to rate: its name, the judge's settings with its layout and method, their fingerprint."""

    name: str
    judge: JudgeSettings
    fingerprint: str


def rate_ways(groups: Dataset, ways: Sequence[JudgedWay], rules: Sequence[str], overseer: Any) -> Dataset:
    """Rate the conversations of each group's trios on all rules, in each way.

    Args:
        groups: dataset of `groups`.
        ways: judges that differ in layout and method only.
        rules: the pool's texts.
        overseer: handle of an `Overseer`.

    Returns:
        Dataset of `rated_ways`.
    """
    judge = ways[0].judge
    plain = [(way.name, way.judge.model_dump(mode="json"), way.fingerprint) for way in ways]
    # What comes before may have joined groups; each block is committed when all ways have rated it.
    return in_blocks(groups, judge.batch_size).map_batches(
        WaysJudge,
        fn_constructor_kwargs={"ways": plain, "rules": list(rules), "overseer": overseer},
        batch_format="pyarrow",
        batch_size=judge.batch_size,
        **pool_options(judge.actors, overseer),
    )


class WaysJudge:
    """Actor that owns one engine and asks it in several ways."""

    def __init__(
        self, ways: Sequence[tuple[str, Mapping[str, Any], str]], rules: Sequence[str], overseer: Any = None
    ) -> None:
        engine = None
        self.judges: list[tuple[str, RuleJudge, str]] = []
        for name, settings, fingerprint in ways:
            judge = RuleJudge(settings, rules, "picked_rules", overseer, engine, TITLES["all_rules"])
            engine = judge.engine
            self.judges.append((name, judge, fingerprint))
        self.engine, self.rule_ids = self.judges[0][1].engine, list(self.judges[0][1].pool.ids)
        self.warm, self.bill = False, Bill(self.engine)

    def __call__(self, batch: pa.Table) -> pa.Table:
        if not self.warm:
            # Not when it is made: torch's threads are those of the thread that calls.
            self._warm_up()
        groups = unpacked(batch)
        for trio in (trio for group in groups for trio in group["trios"]):
            trio["rule_ids"] = self.rule_ids
        asked = packed("groups", groups)
        groups = [group | {"ways": []} for group in groups]
        for name, judge, fingerprint in self.judges:
            for group, rated in zip(groups, unpacked(judge(asked)), strict=True):
                group["postponed"] = group["postponed"] or rated["postponed"]
                costs = {key: rated[key] - group[key] for key in COSTS}
                group["ways"].append({"way": name, **costs, "ratings": rating_rows(rated, fingerprint)})
        for group in groups:
            group |= {key: group[key] + sum(way[key] for way in group["ways"]) for key in COSTS}
        # Each judge counts what the engine did for the others too, so their counts are left aside.
        self.bill.charge(groups[0])
        return packed("rated_ways", groups)

    def _warm_up(self) -> None:
        # It tells this batch from those of other actors that warm up, and is that of a predecessor that died so.
        identifier = f"warm-up of {self.judges[0][1].watched.actor}"
        probe = {
            "prompt": [{"role": "user", "content": "How do I boil an egg?"}],
            "conversations": [
                {
                    "conversation_id": identifier,
                    "response": "Put it into boiling water for eight minutes.",
                }
            ],
            "trios": [{"a": 0, "b": 0, "rule_ids": self.rule_ids[:WARM_RULES]}],
            "calls": 0,
            "tokens": 0,
            "seconds": 0.0,
        }
        for _, judge, _ in self.judges:
            judge(packed("groups", [probe]))
        self.warm = True


def way_rows(group: Group) -> dict[str, list[dict[str, Any]]]:
    """A group's rows of the tables `failures`, `ratings`, `costs` and `compared` (trios that every way rated)."""
    ratings = [row for way in group["ways"] for row in way["ratings"]]
    faults = {
        row["conversation_id"]: f"{way['way']}: {row['error']}"
        for way in reversed(group["ways"])
        for row in way["ratings"]
        if row["error"]
    }
    failures, compared = [], []
    for trio in group["trios"]:
        sides = [group["conversations"][trio[side]]["conversation_id"] for side in ("a", "b")]
        spoilt = next((side for side in sides if side in faults), None)
        if spoilt:
            failures.append({"origin": spoilt, "id": trio["trio_id"], "reason": faults[spoilt], "final": True})
        else:
            about = {"trio_id": trio["trio_id"], "prompt_id": group["prompt_id"], "label": trio["label"]}
            compared.append(
                {**about, "conversation_a": sides[0], "conversation_b": sides[1], "relevance": trio["relevance"]}
            )
    costs = [
        {"way": way["way"], "prompt_id": group["prompt_id"], **{key: way[key] for key in COSTS}}
        for way in group["ways"]
    ]
    return {"failures": failures, "ratings": ratings, "costs": costs, "compared": compared}


def read_ways(store: PartStore, ways: Sequence[JudgedWay], rule_ids: Sequence[str]) -> RatedWays:
    """The arrays of a store's tables: the trios that every way rated, and their conversations.

    Raises:
        SourceError: the trios are of fewer than two prompts.
    """
    trios = sorted(store.read("compared").to_pylist(), key=lambda row: str(row["trio_id"]))
    prompt_of = {row[key]: row["prompt_id"] for row in trios for key in ("conversation_a", "conversation_b")}
    conversations = {identifier: place for place, identifier in enumerate(sorted(prompt_of))}
    prompts = {identifier: place for place, identifier in enumerate(sorted(set(prompt_of.values())))}
    if len(prompts) < 2:
        raise SourceError(
            f"{store.root}: every way rated the trios of {len(prompts)} prompts only, and intervals need two or more. "
            "The quarantine says why the others were left out; raise `limit`, or name another `trios`."
        )
    scores, masses = _cells(store, ways, conversations, rule_ids)
    costs: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for row in store.read("costs").to_pylist():
        for key in ("calls", "seconds"):
            costs[key, row["way"], row["prompt_id"]] += row[key]
    calls, seconds = (
        np.array([[costs[key, way.name, prompt] for prompt in prompts] for way in ways], dtype=np.float64)
        for key in ("calls", "seconds")
    )
    return RatedWays(
        names=[way.name for way in ways],
        scores=scores,
        label_mass=masses,
        calls=calls,
        seconds=seconds,
        prompt_of=np.array([prompts[prompt_of[identifier]] for identifier in conversations]),
        sides=np.array([[conversations[row[f"conversation_{side}"]] for side in "ab"] for row in trios]),
        relevance=np.array([row["relevance"] for row in trios], dtype=np.float64),
        human=[row["label"] for row in trios],
    )


def _cells(
    store: PartStore, ways: Sequence[JudgedWay], conversations: Mapping[str, int], rule_ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and label masses, each [ways, conversations, rules]; NaN where there is none."""
    place_of_way = {way.fingerprint: place for place, way in enumerate(ways)}
    place_of_rule = {rule: place for place, rule in enumerate(rule_ids)}
    found = np.full((2, len(ways), len(conversations), len(rule_ids)), np.nan)
    columns = ["conversation_id", "rule_ids", "score", "label_mass", "error", "fingerprint"]
    for row in store.read("ratings", columns).to_pylist():
        conversation = conversations.get(row["conversation_id"])
        if conversation is not None and not row["error"]:
            rules = [place_of_rule[rule] for rule in row["rule_ids"]]
            found[:, place_of_way[row["fingerprint"]], conversation, rules] = [row["score"], row["label_mass"]]
    return found[0], found[1]


def truncated_conversations(store: PartStore) -> int:
    """Conversations whose response was cut for the judge, and which have ratings."""
    rows = store.read("ratings", ["conversation_id", "truncated", "error"]).to_pylist()
    return len({row["conversation_id"] for row in rows if row["truncated"] and not row["error"]})

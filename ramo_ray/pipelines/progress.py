"""What of a shard is done, what is left to do, and what is given up: read from the shard's own parts.

Marking what is pending (before the work) and accounting (after it) are two readings of the same tables, so that they
cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ramo_ray.pipelines.store import PartStore

Group = dict[str, Any]
Member = Literal["prompts", "trios", "conversations"]
GIVEN_UP = "{reason} (tried {tries} times)"


class Goal(NamedTuple):
    """What makes a member of a group done.

    Attributes:
        member: what is counted. Conversations are done when they are rated on all of `rule_ids`; prompts and trios
            when they are in `table`.
        table: whose rows are results, for prompts and trios.
        max_tries: times that a row with an error is tried, over all runs, unless the error is final.
        rule_ids: the pool's, where ratings are kept that need not be asked for again.
    """

    member: Member
    table: str
    max_tries: int = 1
    rule_ids: tuple[str, ...] = ()


class Account(NamedTuple):
    """Of a shard: rows that came out, members that are pending still, and rows that are given up, for the quarantine.

    Rows are trios (or prompts), as the source's are. Of conversations, `complete` counts those that are rated on all
    rules, `truncated` those of them that the judge read in part, and `cells` (conversation, rule) pairs.
    """

    out: int
    pending: int
    lost: list[dict[str, Any]]
    members: int
    complete: int = 0
    truncated: int = 0
    cells: int = 0


class _Known(NamedTuple):
    """What is known of one conversation, or of one member that failed: its cells, and how it fared."""

    scores: dict[str, float] = {}  # noqa: RUF012 (a tuple's default, never written to)
    truncated: bool = False
    tries: int = 0
    reason: str | None = None
    origin: str = ""
    final: bool = False

    def left(self, goal: Goal) -> bool:
        return not self.complete(goal) and not self.given_up(goal)

    def complete(self, goal: Goal) -> bool:
        return all(rule in self.scores for rule in goal.rule_ids)

    def given_up(self, goal: Goal) -> bool:
        return self.final or self.tries >= goal.max_tries


class _Done(NamedTuple):
    """What is done of a shard: members in the result's table, and by id what has failed."""

    results: set[str]
    failures: dict[str, _Known]
    cells: dict[str, _Known]


def pending(groups: Sequence[Group], store: PartStore, parts: Sequence[str], goal: Goal) -> list[Group]:
    """The groups of a shard that have something to do, with what is known of their conversations.

    Conversations that need nothing more stay, marked `done`: trios need them still. Trios that are done are left out.
    """
    done = _read(store, parts, goal)
    return [group for group in groups if _mark(group, done, goal)]


def account(groups: Sequence[Group], store: PartStore, parts: Sequence[str], goal: Goal) -> Account:
    """What has become of a shard's groups."""
    done = _read(store, parts, goal)
    out = pending = members = complete = truncated = cells = 0
    lost: list[dict[str, Any]] = []
    for group in groups:
        if goal.member == "conversations":
            known = [done.cells.get(c["conversation_id"], _Known({})) for c in group["conversations"]]
            members += len(known)
            pending += sum(own.left(goal) for own in known)
            cells += sum(rule in own.scores for own in known for rule in goal.rule_ids)
            complete += sum(own.complete(goal) for own in known)
            truncated += sum(own.truncated and own.complete(goal) for own in known)
            for trio in group["trios"]:
                sides = [known[trio[side]] for side in ("a", "b")]
                spoilt = next((own for own in sides if not own.complete(goal) and own.given_up(goal)), None)
                if spoilt:
                    lost.append(_lost(trio["trio_id"], spoilt))
                else:
                    out += all(own.complete(goal) for own in sides)
            continue
        ids = _members(group, goal)
        members += len(ids)
        for member in ids:
            if member in done.results:
                out += 1
            elif _gone(member, done, goal):
                lost.append(_lost(member, done.failures[member]))
            else:
                pending += 1
    return Account(out, pending, lost, members, complete, truncated, cells)


def _lost(member: str, fault: _Known) -> dict[str, Any]:
    assert fault.reason is not None
    reason = GIVEN_UP.format(reason=fault.reason, tries=fault.tries) if fault.tries > 1 else fault.reason
    return {"origin": fault.origin, "id": member, "reason": reason}


def _members(group: Group, goal: Goal) -> list[str]:
    return [group["prompt_id"]] if goal.member == "prompts" else [trio["trio_id"] for trio in group["trios"]]


def _gone(member: str, done: _Done, goal: Goal) -> bool:
    return member in done.failures and done.failures[member].given_up(goal)


def _mark(group: Group, done: _Done, goal: Goal) -> bool:
    """Mark what is done in a group; whether anything is left."""
    for conversation in group["conversations"]:
        own = done.cells.get(conversation["conversation_id"], _Known({}))
        conversation["known"] = list(own.scores)
        conversation["known_score"] = list(own.scores.values())
        conversation["truncated"] = own.truncated
        conversation["done"] = goal.member == "conversations" and not own.left(goal)
    if goal.member == "conversations":
        return not all(conversation["done"] for conversation in group["conversations"])
    left = {m for m in _members(group, goal) if m not in done.results and not _gone(m, done, goal)}
    if goal.member == "trios":
        group["trios"] = [trio for trio in group["trios"] if trio["trio_id"] in left]
    return bool(left)


def _read(store: PartStore, parts: Sequence[str], goal: Goal) -> _Done:
    cells = _known_cells(store, parts, frozenset(goal.rule_ids)) if goal.rule_ids else {}
    if goal.member == "conversations":
        return _Done(set(), {}, cells)
    column = "trio_id" if goal.member == "trios" else "prompt_id"
    results = set(store.read(goal.table, [column], parts)[column].to_pylist())
    failures: dict[str, _Known] = {}
    for row in store.read("failures", parts=parts).to_pylist():
        before = failures.get(row["id"], _Known({}))
        failures[row["id"]] = before._replace(
            tries=before.tries + 1,
            reason=row["reason"],
            origin=row["origin"],
            final=before.final or bool(row["final"]),
        )
    return _Done(results, failures, cells)


def _known_cells(store: PartStore, parts: Sequence[str], pool: frozenset[str]) -> dict[str, _Known]:
    """What is known of a shard's conversations. A rule that the pool has lost spoils none, nor uses up its tries."""
    columns = ["conversation_id", "rule_ids", "score", "truncated", "error", "final", "asked"]
    found: dict[str, _Known] = {}
    for row in store.read("ratings", columns, parts).to_pylist():
        if not pool.issuperset(row["asked"] or ()):
            continue
        own = found.setdefault(row["conversation_id"], _Known({}))
        own.scores.update(zip(row["rule_ids"], row["score"], strict=True))
        failed = row["error"] is not None
        found[row["conversation_id"]] = own._replace(
            truncated=own.truncated or bool(row["truncated"]),
            tries=own.tries + failed,
            reason=row["error"] if failed else own.reason,
            origin=row["conversation_id"],
            final=own.final or bool(row["final"]),
        )
    return found

"""Watches over a run's actors: what they have done, what they have under way, which rows kill them, when to stop.

An actor may die with what it works on: a native crash, the memory killer, a machine that goes. Ray starts it again and
gives it the same batch. Whether a row of the batch is to blame only a third party can tell, which remembers what was
under way: the overseer, one Ray actor a run. A batch that was under way at a death is halved and tried again, so that
a row which kills ends up alone. Aboard at `TRIES` deaths, and alone at the last of them, it is given up; its neighbours
have their results by then, which the overseer keeps while the batch has not ended.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from ramo_ray.core.records import content_hash
from ramo_ray.errors import EngineError

TRIES = 3
"""Deaths that a row is aboard of before it is given up."""
STARTS = 3
"""Times that an actor may die while it loads its model, or between batches: before one is begun or when it has ended,
where no row is to blame."""
PATIENCE = 20
"""Deaths in a row, beside those that batches under way may account for, after which it is not the rows."""


DRAINING_SECONDS = 1.0
"""Between two looks at which nodes are to go."""
HOMELESS_SECONDS = 10.0
"""Time in which nothing moves, after which actors whose node is gone, and who found no other, are given up."""
IDLE_SECONDS = 120.0
"""An actor without a batch for so long counts as gone: Ray ends an idle one without a word."""


class Lost(NamedTuple):
    """Stands where a result would: this row killed its actor."""

    deaths: int

    @property
    def reason(self) -> str:
        """What the quarantine says."""
        return f"killed its actor: {self.deaths} times the process died with this row, the last time alone"


class Todo(NamedTuple):
    """What an actor shall do about a batch: pieces still to try, by place; results that a predecessor left; the lost.

    `retried` says that an actor died with this batch, so each piece must be announced; `elsewhere` that the actor's
    node is to go, so the batch is for the actor's successor on another.
    """

    pieces: list[list[int]]
    known: dict[int, Any]
    lost: dict[int, Lost]
    retried: bool
    elsewhere: bool = False


class _Batch:
    """A batch that is under way."""

    def __init__(self, rows: int, actor: str, role: str, lost: dict[int, Lost]) -> None:
        self.actor, self.role = actor, role
        left = [place for place in range(rows) if place not in lost]
        self.pieces: deque[list[int]] = deque([left] if left else [])
        self.trying: list[int] | None = None
        self.deaths: Counter[int] = Counter()
        self.known: dict[int, Any] = {}
        self.lost = dict(lost)

    def died(self) -> None:
        """Take note that the piece under way killed the actor, or died with it."""
        piece, self.trying = self.trying, None
        if piece is None:
            return
        self.pieces.remove(piece)
        self.deaths.update(piece)
        if len(piece) > 1:
            half = math.ceil(len(piece) / 2)
            self.pieces.extendleft([piece[half:], piece[:half]])
        elif self.deaths[piece[0]] >= TRIES:
            self.lost[piece[0]] = Lost(self.deaths[piece[0]])
        else:
            # The healthy first: what they give is kept.
            self.pieces.append(piece)

    def todo(self, *, retried: bool) -> Todo:
        return Todo(list(self.pieces), self.known, self.lost, retried)


@dataclass
class _Role:
    """An actor's way of working: where it started, its deaths between batches, and the last batch that ended."""

    node: str = ""
    deaths: int = 0
    ended: str = ""


class Overseer:
    """Sums what actors report (not exact where a batch is repeated: tables are), and keeps their batches."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.batches: dict[str, _Batch] = {}
        # Ray may repeat a batch that had ended, when its actor dies with a later one.
        self.lost: dict[str, dict[int, Lost]] = {}
        self.starting: Counter[str] = Counter()
        self.roles: dict[str, _Role] = {}
        self.deaths_in_a_row = 0
        self.stopping = False
        self.draining: frozenset[str] = frozenset()
        self.looked = -math.inf
        self.seen: dict[str, float] = {}
        self.aside: set[str] = set()
        self.homes: dict[str, tuple[str, Any]] = {}
        self.moved, self.released = time.monotonic(), 0
        self.actor_seconds, self.counted = 0.0, time.monotonic()

    def add(self, **amounts: float) -> None:
        """Add to the sums by name."""
        self.sums.update(amounts)

    def totals(self) -> dict[str, float]:
        """The sums by name; the `actors` there are, those `busy`, their `actor_seconds`, batches `under_way`."""
        now = time.monotonic()
        busy = {batch.actor for batch in self.batches.values()} - self.aside
        alive = ({actor for actor, last in self.seen.items() if now - last < IDLE_SECONDS} | busy) - self.aside
        self.actor_seconds += len(alive) * (now - self.counted)
        self.counted = now
        own = {"actors": len(alive), "busy": len(busy), "actor_seconds": self.actor_seconds}
        return dict(self.sums) | own | {"under_way": len(self.batches)}

    def stop(self) -> None:
        """Let no batch begin any more; those under way end."""
        self.stopping = True

    def is_stopping(self) -> bool:
        """Whether no batch shall begin any more."""
        return self.stopping

    def begin_round(self) -> None:
        """Forget the actors of an earlier round, and what they had under way; sums and lost rows stay."""
        self.batches.clear()
        self.starting.clear()
        self.roles.clear()
        self.seen.clear()
        self.homes.clear()
        self.deaths_in_a_row, self.moved = 0, time.monotonic()

    def release(self) -> int:
        """Give up actors whose node is gone and who find no other, once nothing else moves; how many were, so far.

        Ray keeps their batches for them. Without them the batches fail, the round with them, and another begins.
        """
        waiting = time.monotonic() - self.moved
        if waiting < HOMELESS_SECONDS:
            return self.released
        nodes = _nodes()
        homeless = {actor for actor, (node, _) in self.homes.items() if node not in nodes}
        if all(batch.actor in homeless for batch in self.batches.values()):
            for actor in homeless:
                _give_up(self.homes.pop(actor)[1])
                self.seen.pop(actor)
                self.batches = {key: batch for key, batch in self.batches.items() if batch.actor != actor}
            self.released += len(homeless)
        return self.released

    def starts(self, actor: str, role: str, node: str, handle: Any, *, aside: bool = False) -> None:
        """An actor begins to load its model; one `aside` belongs to another pool than the one that sets the pace.

        Raises:
            EngineError: it died doing so, or between batches, `STARTS` times in a row.
        """
        own = self.roles.setdefault(role, _Role())
        # On another node it is one that moved, or whose machine has gone.
        again = own.node == node and actor not in self.starting
        if again and not any(batch.actor == actor for batch in self.batches.values()):
            own.deaths += 1
        own.node = node
        if aside:
            self.aside.add(actor)
        self._moves(actor)
        self.homes[actor] = (node, handle)
        self.starting[actor] += 1
        if self.starting[actor] > STARTS:
            raise EngineError(
                f"an actor's process died {STARTS} times while it loaded its model. Look at the memory that the model "
                "needs, and at the worker's log in Ray's session folder."
            )
        if own.deaths > STARTS:
            raise EngineError(
                f"an actor's process died {STARTS + 1} times between batches, with nothing new done. Look at the "
                "machine's memory, at what batch_size asks of it, and at the worker's log in Ray's session folder."
            )

    def has_started(self, actor: str) -> None:
        """The actor's model is loaded."""
        self._moves(actor)
        del self.starting[actor]

    def begin(self, key: str, rows: int, actor: str, role: str, node: str) -> Todo | None:
        """A batch begins, or begins again because its actor died; None where nothing shall begin any more.

        On a node that is being drained nothing begins either: it goes when what is under way there has ended.

        Raises:
            EngineError: actors die one after another, whatever they are given.
        """
        self._moves(actor)
        known = self.batches.get(key)
        if node in self._draining() and not self.stopping:
            return Todo([], {}, {}, retried=False, elsewhere=True)
        if known is None:
            if self.stopping:
                return None
            batch = self.batches[key] = _Batch(rows, actor, role, self.lost.get(key, {}))
            todo = batch.todo(retried=False)
            batch.trying = batch.pieces[0] if batch.pieces else None
            return todo
        known.actor = actor
        self.deaths_in_a_row += 1
        if self.deaths_in_a_row > PATIENCE + TRIES * len(self.batches):
            raise EngineError(
                f"{self.deaths_in_a_row} times in a row an actor's process died, with different rows: they are not at "
                "fault. Look at the machines' memory and at the workers' logs in Ray's session folder, then run again."
            )
        known.died()
        if self.stopping:
            del self.batches[key]
            return None
        return known.todo(retried=True)

    def _moves(self, actor: str) -> None:
        self.seen[actor] = self.moved = time.monotonic()

    def _draining(self) -> frozenset[str]:
        if time.monotonic() - self.looked >= DRAINING_SECONDS:
            self.draining, self.looked = _draining_nodes(), time.monotonic()
        return self.draining

    def tries(self, key: str, piece: list[int]) -> None:
        """A piece of a batch that was retried begins."""
        self.batches[key].trying = piece

    def has_done(self, key: str, piece: list[int], results: Sequence[Any]) -> None:
        """A piece of a batch that was retried has ended."""
        batch = self.batches[key]
        self._moves(batch.actor)
        batch.trying = None
        batch.pieces.remove(piece)
        batch.known.update(zip(piece, results, strict=True))
        self.deaths_in_a_row = 0

    def end(self, key: str) -> None:
        """A batch has ended."""
        batch = self.batches.pop(key)
        self._moves(batch.actor)
        own = self.roles.setdefault(batch.role, _Role())
        # A death after this gives the actor the same batch again.
        if own.ended != key:
            own.deaths = 0
        own.ended = key
        lost = batch.lost
        if lost:
            self.lost[key] = lost
        else:
            self.deaths_in_a_row = 0


class Watched:
    """An actor's side of the overseer. Without one (`overseer` is None) its work is simply done.

    `way` tells batches of the same rows apart that one actor works on in several ways; an actor `aside` is of another
    pool than the one that sets the pace.
    """

    def __init__(self, overseer: Any = None, way: str = "", *, aside: bool = False) -> None:
        self.overseer, self.way, self.actor, self.role = overseer, way, "", way
        self.close: Callable[[], None] | None = None
        if overseer is not None:
            self.actor, self._node, handle = _own_place()
            self.role = f"{self.actor}/{way}"
            _ask(overseer.starts, self.actor, self.role, self._node, handle, aside=aside)

    def ready(self, close: Callable[[], None] | None = None) -> None:
        """Say that the model is loaded; `close` ends what it has started beside this process."""
        self.close = close
        if self.overseer is not None:
            self.overseer.has_started.remote(self.actor)

    def report(self, **amounts: float) -> None:
        """Add to the overseer's sums."""
        if self.overseer is not None:
            self.overseer.add.remote(**amounts)

    def through(self, ids: Sequence[str], work: Callable[[Sequence[int]], list[Any]]) -> list[Any] | None:
        """Results of some rows; `Lost` for those that kill actors; None where the run is stopping.

        Args:
            ids: of the rows; the same when Ray repeats the batch.
            work: from places of rows to their results.
        """
        if self.overseer is None or not ids:
            return work(range(len(ids)))
        key = content_hash("batch", self.way, list(ids))
        todo: Todo | None = _ask(self.overseer.begin, key, len(ids), self.actor, self.role, self._node)
        if todo is None:
            return None
        if todo.elsewhere:
            if self.close:
                self.close()
            _leave()
        found: dict[int, Any] = todo.known | todo.lost
        for piece in todo.pieces:
            if todo.retried:
                _ask(self.overseer.tries, key, piece)
            results = work(piece)
            if todo.retried:
                _ask(self.overseer.has_done, key, piece, results)
            found.update(zip(piece, results, strict=True))
        self.overseer.end.remote(key)
        return [found[place] for place in range(len(ids))]


def _ask(method: Any, *arguments: Any, **named: Any) -> Any:
    import ray

    return ray.get(method.remote(*arguments, **named))


def _own_place() -> tuple[str, str, Any]:
    """This actor's id, its node's, and its handle."""
    import ray

    context = ray.get_runtime_context()
    return str(context.get_actor_id()), str(context.get_node_id()), context.current_actor


def _nodes() -> set[str]:
    """The nodes that are up."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _give_up(actor: Any) -> None:
    import ray

    ray.kill(actor, no_restart=True)


def _draining_nodes() -> frozenset[str]:
    # Ray Train asks this way too; the public API does not say which nodes are to go.
    from ray._private.state import state

    return frozenset(state.get_draining_nodes())


def _leave() -> NoReturn:
    """End this process, so that Ray starts the actor again where there is room, with the batch that was refused."""
    os._exit(0)

"""Rows that kill their actor, found by who was aboard at each death; actors that die of something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramo_ray.errors import EngineError
from ramo_ray.pipelines import overseer
from ramo_ray.pipelines.overseer import HOMELESS_SECONDS, PATIENCE, STARTS, TRIES, Lost, Overseer, Watched


class Died(BaseException):
    """Stands for the end of an actor's process: nothing in it catches this."""


class Handle:
    """An overseer, asked as through Ray, in this process."""

    def __init__(self) -> None:
        self.own = Overseer()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.own, name))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overseer, "_ask", lambda method, *given, **named: method.remote(*given, **named))
    monkeypatch.setattr(overseer, "_own_place", lambda: ("actor", "node", None))
    monkeypatch.setattr(overseer, "_draining_nodes", frozenset)


class Judge:
    """Works on rows by name; the poisonous kill it. Counts what it was given and how often it died."""

    def __init__(self, poison: set[str], *, spare: int = 0) -> None:
        self.handle, self.poison = Handle(), poison
        self.worked: Counter[str] = Counter()
        self.deaths, self.spare = 0, spare

    def batch(self, ids: Sequence[str]) -> list[Any] | None:
        """A batch, as Ray gives it to an actor: again, to its successor, after each death."""
        while True:
            watched = Watched(self.handle)
            watched.ready()
            try:
                return watched.through(ids, lambda places: self._work([ids[place] for place in places]))
            except Died:
                self.deaths += 1

    def _work(self, rows: Sequence[str]) -> list[str]:
        self.worked.update(rows)
        if self.poison.intersection(rows):
            raise Died
        if self.spare:
            # A machine that goes, whatever it works on.
            self.spare -= 1
            raise Died
        return [row.upper() for row in rows]


def test_without_deaths_a_batch_is_worked_on_once_and_whole() -> None:
    judge = Judge(set())
    assert judge.batch(["a", "b", "c"]) == ["A", "B", "C"]
    assert judge.worked == {"a": 1, "b": 1, "c": 1}
    assert judge.handle.own.batches == {}


def test_without_an_overseer_the_work_is_done() -> None:
    watched = Watched()
    watched.ready()
    watched.report(calls=1)
    assert watched.through(["a", "b"], list) == [0, 1]


def test_of_eight_rows_the_one_that_kills_is_found_in_four_deaths() -> None:
    judge = Judge({"f"})
    assert judge.batch("abcdefgh") == ["A", "B", "C", "D", "E", Lost(4), "G", "H"]
    assert judge.deaths == 4
    assert judge.worked["f"] == 4
    # The halves that lived are not asked again.
    assert max(count for row, count in judge.worked.items() if row != "f") == 4
    assert "4 times" in Lost(4).reason


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_all_that_kill_are_lost_and_all_others_have_their_results(drawn: tuple[int, set[int]]) -> None:
    rows, poison = drawn
    names = [f"row {n}" for n in range(rows)]
    judge = Judge({names[n] for n in poison})
    found = judge.batch(names)
    assert found is not None
    for place, result in enumerate(found):
        if place in poison:
            assert isinstance(result, Lost)
            assert result.deaths >= TRIES
        else:
            assert result == names[place].upper()
    assert judge.deaths <= 2 * rows + TRIES * len(poison)
    assert all(judge.worked[names[place]] <= rows.bit_length() + TRIES for place in poison)


@given(st.integers(1, 9), st.integers(0, 4))
def test_a_machine_that_goes_costs_no_row(rows: int, deaths: int) -> None:
    judge = Judge(set(), spare=min(deaths, TRIES - 1))
    names = [f"row {n}" for n in range(rows)]
    assert judge.batch(names) == [name.upper() for name in names]


@pytest.mark.parametrize(("way", "ids"), [("two", ["a", "b"]), ("one", ["b", "a"]), ("one", ["a"])])
def test_another_way_or_another_batch_is_not_taken_for_a_repeat(way: str, ids: list[str]) -> None:
    handle, pieces = Handle(), list[list[int]]()

    def die(_: Sequence[int]) -> list[Any]:
        raise Died

    def work(places: Sequence[int]) -> list[Any]:
        pieces.append(list(places))
        return list(places)

    with pytest.raises(Died):
        Watched(handle, "one").through(["a", "b"], die)
    Watched(handle, way).through(ids, work)
    assert pieces == [list(range(len(ids)))]
    Watched(handle, "one").ready()
    Watched(handle, "one").through(["a", "b"], work)
    assert pieces[1:] == [[0], [1]]


def test_a_batch_that_had_ended_and_is_repeated_kills_nobody() -> None:
    judge = Judge({"b", "d"})
    first, deaths = judge.batch("abcde"), judge.deaths
    assert judge.batch("abcde") == first
    assert judge.deaths == deaths
    assert Judge({"a"}).batch("a") == [Lost(TRIES)]
    alone = Judge({"a"})
    assert alone.batch("a") == alone.batch("a") == [Lost(TRIES)]
    assert alone.deaths == TRIES


def test_a_run_that_stops_begins_nothing_and_ends_what_has_begun() -> None:
    judge = Judge(set())
    judge.handle.own.begin("under way", 2, "actor", "actor/", "node")
    judge.handle.own.stop()
    assert judge.batch(["a"]) is None
    assert judge.worked == {}
    judge.handle.own.end("under way")
    assert judge.handle.own.batches == {}


def test_what_died_while_a_run_stops_is_left_to_the_next() -> None:
    judge = Judge({"b"})
    watched = Watched(judge.handle)
    with pytest.raises(Died):
        watched.through(["a", "b"], lambda _: judge._work(["a", "b"]))
    judge.handle.own.stop()
    assert judge.batch(["a", "b"]) is None
    assert judge.handle.own.batches == {}


def test_an_actor_that_dies_while_it_loads_its_model_is_given_up() -> None:
    handle = Handle()
    for _ in range(STARTS):
        Watched(handle)
    with pytest.raises(EngineError, match="died 3 times while it loaded its model"):
        Watched(handle)


def test_an_actor_that_dies_before_a_batch_begins_or_when_it_has_ended_is_given_up() -> None:
    for ids in ([], ["a"]):
        handle = Handle()
        for _ in range(STARTS + 1):
            watched = Watched(handle, "way")
            watched.ready()
            watched.through(ids, lambda places: [0] * len(places))
            # Another way of the same actor, in the same process.
            Watched(handle, "other").ready()
        with pytest.raises(EngineError, match="died 4 times between batches"):
            Watched(handle, "way")


def test_deaths_between_batches_count_while_nothing_new_is_done() -> None:
    handle = Handle()
    for n in range(10 * STARTS):
        watched = Watched(handle)
        watched.ready()
        watched.through([str(n // 2)], lambda places: [0] * len(places))


def test_one_that_starts_in_the_end_may_die_as_often_again() -> None:
    handle = Handle()
    for _ in range(STARTS):
        Watched(handle)
        Watched(handle).ready()
    assert handle.own.starting == {}


def test_when_everything_kills_it_is_not_the_rows() -> None:
    judge = Judge({str(n) for n in range(1000)})
    batches = [[str(row) for row in range(n, n + 8)] for n in range(0, 1000, 8)]
    with pytest.raises(EngineError, match="they are not at fault"):
        list(map(judge.batch, batches))
    assert judge.deaths <= PATIENCE + 2 * TRIES


def test_sums_are_kept_by_name() -> None:
    handle = Handle()
    Watched(handle).report(calls=2, seconds=0.5)
    Watched(handle).report(calls=3)
    found = handle.own.totals()
    assert found.pop("actor_seconds") >= 0
    assert found == {"calls": 5, "seconds": 0.5, "actors": 1, "busy": 0, "under_way": 0}


def test_actors_count_while_they_work_and_a_while_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(overseer.time, "monotonic", lambda: clock[0])
    own = Overseer()
    own.begin("a", 1, "one", "one/", "node")
    own.begin("b", 1, "two", "two/", "node")
    own.end("b")
    clock[0] = 100
    assert own.totals() == {"actors": 2, "busy": 1, "actor_seconds": 200, "under_way": 1}
    clock[0] = 200
    assert own.totals() == {"actors": 1, "busy": 1, "actor_seconds": 300, "under_way": 1}
    own.end("a")
    clock[0] = 400
    assert own.totals() == {"actors": 0, "busy": 0, "actor_seconds": 300, "under_way": 0}


def test_on_a_node_that_is_to_go_nothing_begins_and_nothing_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(set())
    own, gone = judge.handle.own, []
    monkeypatch.setattr(overseer, "DRAINING_SECONDS", 0.0)
    own.begin("under way", 2, "other", "other/", "elsewhere")

    class Left(BaseException):
        pass

    def leave() -> None:
        raise Left

    monkeypatch.setattr(overseer, "_leave", leave)
    monkeypatch.setattr(overseer, "_draining_nodes", lambda: frozenset({"node"}))
    watched = Watched(judge.handle)
    watched.ready(lambda: gone.append("engine"))
    with pytest.raises(Left):
        watched.through(["a"], lambda _: ["never"])
    assert gone == ["engine"]
    assert list(own.batches) == ["under way"]
    assert own.deaths_in_a_row == 0
    # Its successor, elsewhere, takes the same batch as if it were new.
    monkeypatch.setattr(overseer, "_own_place", lambda: ("actor", "elsewhere", None))
    assert Watched(judge.handle).through(["a"], lambda places: [f"did {place}" for place in places]) == ["did 0"]
    # Where the run is stopping nobody needs to go anywhere.
    own.stop()
    assert Watched(judge.handle).through(["b"], lambda _: ["never"]) is None


def test_actors_without_a_node_are_given_up_when_nothing_else_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    own, given_up, clock = Overseer(), [], [1000.0]
    monkeypatch.setattr(overseer, "_nodes", lambda: {"up"})
    monkeypatch.setattr(overseer, "_give_up", given_up.append)
    monkeypatch.setattr(overseer.time, "monotonic", lambda: clock[0])
    for actor, node in (("well", "up"), ("homeless", "gone")):
        own.starts(actor, f"{actor}/", node, f"handle of {actor}")
        own.has_started(actor)
        own.begin(f"batch of {actor}", 1, actor, f"{actor}/", node)
    clock[0] += HOMELESS_SECONDS
    # The others work on: a machine may come in the meantime.
    assert own.release() == 0
    own.end("batch of well")
    clock[0] += HOMELESS_SECONDS / 2
    assert own.release() == 0
    clock[0] += HOMELESS_SECONDS
    assert own.release() == 1
    assert given_up == ["handle of homeless"]
    assert own.totals()["actors"] == 1
    # The batch that it had under way is free: whoever is given it begins it anew.
    assert own.begin("batch of homeless", 1, "well", "well/", "up") == ([[0]], {}, {}, False, False)
    clock[0] += 10 * HOMELESS_SECONDS
    assert own.release() == 1


def test_a_stop_does_not_keep_the_homeless_and_a_new_round_forgets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    own, given_up, clock = Overseer(), [], [1000.0]
    monkeypatch.setattr(overseer, "_nodes", set)
    monkeypatch.setattr(overseer, "_give_up", given_up.append)
    monkeypatch.setattr(overseer.time, "monotonic", lambda: clock[0])
    own.starts("homeless", "homeless/", "gone", "its handle")
    own.begin("batch", 1, "homeless", "homeless/", "gone")
    own.stop()
    clock[0] += 2 * HOMELESS_SECONDS
    assert own.release() == 1
    assert given_up == ["its handle"]
    own.starts("another", "another/", "gone", "its handle")
    own.begin_round()
    clock[0] += 2 * HOMELESS_SECONDS
    assert own.release() == 1
    assert own.is_stopping()


def test_a_pool_aside_is_watched_but_sets_no_pace() -> None:
    own = Overseer()
    for actor, aside in (("judge", False), ("picker", True)):
        own.starts(actor, f"{actor}/", "node", None, aside=aside)
        own.begin(f"batch of {actor}", 1, actor, f"{actor}/", "node")
    found = own.totals()
    assert (found["actors"], found["busy"], found["under_way"]) == (1, 1, 2)

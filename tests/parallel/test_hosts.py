"""How hosts find each other, who is called lost and when, and that all stop at the same look."""

from __future__ import annotations

import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.errors import EXIT_USER, UserError
from seq2seq_jax.parallel import hosts
from seq2seq_jax.parallel.hosts import ALONE, FAREWELL, Place, find_difference, find_place, finds_cluster, join
from seq2seq_jax.parallel.watch import GRACE, STALL, SUSPICION, Watch

LIMIT = 20.0
NAMES = ["a, process 1", "b, process 2", "c, process 3"]


class Table:
    """A board in memory, which can be away."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.away = False

    def put(self, key: str, value: str) -> None:
        if self.away:
            raise ConnectionError
        self.rows[key] = value

    def read(self, folder: str) -> dict[str, str]:
        if self.away:
            raise ConnectionError
        return dict(self.rows)


class World:
    """Hosts around a table, and the time."""

    def __init__(self, count: int) -> None:
        self.now, self.table = 100.0, Table()
        self.hosts = [
            Watch(self.table, index=n, count=count, limit=LIMIT, clock=lambda: self.now) for n in range(count)
        ]

    def pass_time(self, seconds: float, *, beating: tuple[int, ...], looking: tuple[int, ...] = ()) -> None:
        """Time goes by second by second; some hosts beat, the loops of some go round, and all who beat look around."""
        for _ in range(round(seconds)):
            self.now += 1
            for host in beating:
                try:
                    self.hosts[host].tick()
                except ConnectionError:
                    pass
            for host in looking:
                assert self.hosts[host].look(None) is None
            for host in beating:
                self.last = self.hosts[host].find_lost()


# --- who is lost ---------------------------------------------------------------------------------


def test_nobody_is_lost_while_all_beat_even_if_no_loop_comes_round():
    world = World(3)
    world.pass_time(3 * STALL * LIMIT, beating=(0, 1, 2))
    assert [host.find_lost() for host in world.hosts] == [None] * 3


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_host_that_falls_silent_is_named_by_all_others_after_the_limit_and_not_before(dead):
    world = World(3)
    world.pass_time(50, beating=(0, 1, 2), looking=(0, 1, 2))
    alive = tuple({0, 1, 2} - {dead})
    world.pass_time(LIMIT - 1, beating=alive)
    assert [world.hosts[host].find_lost() for host in alive] == [None, None]
    world.pass_time(3, beating=alive)
    for host in alive:
        lost = world.hosts[host].find_lost()
        assert lost.host == dead and lost.problem == "has not been heard of for 20 s" and lost.code is None


def test_without_the_board_the_host_that_keeps_it_is_lost():
    world = World(2)
    world.pass_time(5, beating=(0, 1))
    world.table.away = True
    world.pass_time(LIMIT - 1, beating=(1,))
    assert world.last is None
    world.pass_time(2, beating=(1,))
    assert world.last.host == 0


def test_after_a_failure_little_silence_is_enough():
    world = World(3)
    world.pass_time(30, beating=(0, 1, 2))
    world.hosts[2].suspect()
    world.pass_time(SUSPICION + 1, beating=(0, 2))
    assert world.hosts[2].find_lost().host == 1 and world.hosts[0].find_lost() is None
    world.table.away = True
    world.pass_time(1, beating=(2,))
    assert world.hosts[2].find_lost().host == 0


def test_a_host_that_slept_itself_does_not_blame_the_others():
    world = World(2)
    world.pass_time(5, beating=(0, 1))
    world.now += 10 * LIMIT
    assert world.hosts[0].find_lost() is None
    world.pass_time(2, beating=(0, 1))
    assert world.last is None


def test_a_loop_that_stays_behind_while_its_host_beats_is_named():
    world = World(3)
    world.pass_time(5, beating=(0, 1, 2), looking=(0, 1, 2))
    world.pass_time(2, beating=(0, 1, 2), looking=(0, 2))
    world.pass_time(STALL * LIMIT - 3, beating=(0, 1, 2))
    assert world.last is None
    world.pass_time(8, beating=(0, 1, 2))
    assert [host.find_lost().host for host in world.hosts] == [1, 1, 1]
    assert "while others wait for it" in world.hosts[0].find_lost().problem


def test_a_host_that_leaves_with_an_error_is_named_with_its_words_and_one_that_is_done_is_not():
    world = World(3)
    world.pass_time(5, beating=(0, 1, 2))
    assert not world.hosts[1].leave(2, "the disk is full", patience=0)
    assert not world.hosts[2].leave(0, "done", patience=0)
    world.pass_time(1, beating=(0, 1, 2))
    assert world.hosts[0].find_lost() is None  # it may be about to come to the same end itself
    world.pass_time(GRACE + 1, beating=(0,))
    lost = world.hosts[0].find_lost()
    assert (lost.host, lost.problem, lost.code) == (1, "stopped: the disk is full", 2)
    assert world.hosts[1].find_lost() is None  # it has its own reason
    world.pass_time(2 * LIMIT, beating=(0,))
    assert world.hosts[0].find_lost().host == 1


def test_all_have_left_when_all_have_left():
    world = World(2)
    for host in world.hosts:
        host.leave(0, "done", patience=0)
    world.pass_time(2, beating=(0, 1))
    assert all(host.leave(0, "done", patience=0) for host in world.hosts)


# --- stopping together ---------------------------------------------------------------------------


@given(st.integers(1, 4), st.data())
def test_all_hosts_stop_at_the_same_look_whenever_signals_come(count, data):
    """Any order of beats and looks, any number of signals: nobody stops earlier or later than another."""
    world, looks, stopped = World(count), [0] * count, {}
    asked = data.draw(st.dictionaries(st.integers(0, count - 1), st.integers(0, 12), min_size=1))
    order = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.booleans()), max_size=80))
    order += [(host, beats) for _ in range(60) for host in range(count) for beats in (True, False)]
    for host, beats in order:
        watch = world.hosts[host]
        if beats:
            watch.tick()
        elif not watch.is_held and host not in stopped:
            looks[host] += 1
            number = 15 if looks[host] > asked.get(host, 10**9) else None
            if watch.look(number) is not None:
                stopped[host] = looks[host]
    assert len(stopped) == count and len(set(stopped.values())) == 1, stopped
    assert min(stopped.values()) > min(asked.values())


def test_all_hosts_stop_for_the_same_signal():
    world = World(2)
    for host, number in ((0, 2), (1, 15)):
        assert world.hosts[host].look(number) is None
    for _ in range(4):
        for host in world.hosts:
            host.tick()
    assert [host.look(None) for host in world.hosts] == [2, 2]


# --- coming together -----------------------------------------------------------------------------


def test_a_fact_that_differs_is_told_with_the_host_that_has_it():
    facts = [{"jax": "0.10.2", "seed": 1}, {"jax": "0.10.2", "seed": 1}, {"jax": "0.11.2", "seed": 1}]
    assert find_difference(facts, NAMES) == "host 2 (c, process 3) has jax 0.11.2, host 0 has 0.10.2"
    facts = [{"seed": 2}, {"seed": 1}, {"seed": 1}]
    assert find_difference(facts, NAMES) == "host 0 (a, process 1) has seed 2, host 1 has 1"  # most are right
    assert find_difference([{"a": 1}, {}], NAMES) == "host 1 (b, process 2) has a none, host 0 has 1"
    assert find_difference([{"a": [1]}] * 3, NAMES) == ""


def test_flags_come_before_the_environment_and_either_may_give_all():
    environ = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert find_place(None, None, None, environ) == Place("h:1", 4, 3)
    assert find_place("other:2", 2, 0, environ) == Place("other:2", 2, 0)
    assert find_place(None, None, 1, environ) == Place("h:1", 4, 1)
    assert find_place(None, None, None, {}) is None


@pytest.mark.parametrize(
    ("coordinator", "count", "index", "match"),
    [
        (None, 2, 0, "--coordinator .* is missing"),
        ("h:1", 2, None, "--host .* is missing"),
        ("h:1", 2, 2, "--host must be 0 to"),
        ("h:1", 0, 0, "--host must be 0 to"),
        ("h", 2, 0, "must be HOST:PORT"),
        (":1", 2, 0, "must be HOST:PORT"),
    ],
)
def test_what_cannot_be_is_refused_with_the_flag_to_mend(coordinator, count, index, match):
    with pytest.raises(UserError, match=match):
        find_place(coordinator, count, index, {})


def test_one_host_starts_nothing():
    assert join(environ={"JAX_PLATFORMS": "cpu"}).count == 1
    assert join(coordinator="h:1", count=1, index=0, environ={}).count == 1
    with pytest.raises(UserError, match="--host_timeout"):
        join(timeout=0.5, environ={})


def test_a_cluster_is_seen_by_what_it_sets():
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    cpu = {"JAX_PLATFORMS": "cpu"}
    assert finds_cluster({**cpu, **slurm, "SLURM_NTASKS": "2"})
    assert not finds_cluster({**cpu, **slurm, "SLURM_NTASKS": "1"})
    assert not finds_cluster({**cpu, "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"})  # a batch script, not a step
    assert finds_cluster({"TPU_WORKER_HOSTNAMES": "a,b"}) and not finds_cluster({"TPU_WORKER_HOSTNAMES": "a"})
    assert find_place(None, None, None, {**slurm, "SLURM_NTASKS": "2", "JAX_PLATFORMS": "cpu"}) is None


def test_alone_everything_is_done_at_once():
    assert ALONE.gather("x", "y") == ["y"] and ALONE.share("x", lambda: (1,)) == (1,) and ALONE.look(15) == 15
    assert ALONE.primary_first("x", lambda: 3) == 3 and ALONE.is_primary and ALONE.look(None) is None
    ALONE.check_same("x", {"a": 1})
    with ALONE:
        pass


# --- how one leaves ------------------------------------------------------------------------------


class Door:
    """Stands for `Watch` when a host leaves."""

    limit = 0.0

    def __init__(self, together: bool) -> None:
        self.together, self.said = together, ()

    def leave(self, code: int, words: str, *, patience: float) -> bool:
        self.said = code, words, patience
        return self.together

    def stop(self) -> None:
        pass

    def suspect(self) -> None:
        pass

    def find_lost(self) -> None:
        return None


@pytest.mark.parametrize(
    ("error", "together", "said", "ended"),
    [
        (None, True, (0, "done", math.inf), None),
        (None, False, (0, "done", math.inf), ("done", 0)),
        (UserError("bad"), True, (EXIT_USER, "bad", FAREWELL), None),
        (OSError("full"), True, (EXIT_USER, "full", FAREWELL), None),
        (KeyboardInterrupt(), True, (130, "KeyboardInterrupt", FAREWELL), None),
        (UserError("bad"), False, (EXIT_USER, "bad", FAREWELL), ("bad", EXIT_USER)),
        (ValueError("bug"), True, (1, "bug", FAREWELL), ("bug", 1)),
    ],
    ids=["done", "done, one is lost", "refused", "full disk", "Ctrl-C", "refused, one is lost", "a bug"],
)
def test_who_leaves_says_why_and_ends_at_once_only_where_jax_s_farewell_could_hang(
    monkeypatch, error, together, said, ended
):
    """Else the program goes on after the hosts have left, and has the exit code of its error."""
    done = []
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: done.append("farewell"))
    monkeypatch.setattr(hosts, "_end", lambda words, code: done.append((words, code)))
    monkeypatch.setattr(hosts, "GRACE", 0.0)
    host = hosts.Hosts(0, 1)
    host._watch = Door(together)
    try:
        with host:
            if error is not None:
                raise error
    except BaseException as seen:
        assert seen is error
    assert host._watch.said == said
    assert done[0] == (ended or "farewell")

"""Hosts that watch each other: who is still there, who has left and why, and when all stop together.

Every host keeps one small record on a board that all can read, and renews it every second:

    beats   how often it was renewed       → a host whose record stands still is dead, or cut off
    looks   how often its loop came round  → a host that stays behind the others hangs
    asked   the stop signal it received    ┐ all hosts stop at the same look of their loops
    at      the look it had then           ┘
    left    its exit code and last words

Nothing here needs the devices: while a collective waits for a host that will never come, this goes on.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from typing import Protocol

GRACE = 3.0
"""Seconds that a host gets to come by itself to the end that another one has come to."""
SUSPICION = 5.0
"""Seconds of silence that are enough where something has failed that says a host may be lost."""
STALL = 10
"""A loop that stays behind the others for so many limits hangs; compiling on one host alone takes less."""


class Board(Protocol):
    """Strings that all hosts can write and read."""

    def put(self, key: str, value: str) -> None:
        """Writes, over what stands there."""
        ...

    def read(self, folder: str) -> dict[str, str]:
        """All that was written as `folder/key`, by its key."""
        ...


@dataclasses.dataclass(frozen=True)
class Lost:
    """A host that is gone: what to tell people, and the exit code of those who go with it."""

    host: int
    problem: str
    code: int | None = None  # None: it did not leave one


@dataclasses.dataclass
class Record:
    """What a host tells of itself."""

    beats: int = 0
    looks: int = 0
    asked: int = 0  # number of the signal; 0 for none
    at: int | None = None
    left: tuple[int, str] | None = None

    def dump(self) -> str:
        """As it stands on the board."""
        return json.dumps(dataclasses.astuple(self))

    @classmethod
    def load(cls, text: str) -> Record:
        """From the board."""
        beats, looks, asked, at, left = json.loads(text)
        return cls(beats, looks, asked, at, None if left is None else (left[0], left[1]))


class Watch:
    """One host's part in the watch. `tick` and `find_lost` run in threads of their own, all else in the main thread.

    Args:
        board: where the records stand.
        index, count: of the hosts.
        limit: seconds without a sign after which a host counts as lost.
        clock: seconds.
    """

    def __init__(
        self,
        board: Board,
        *,
        index: int,
        count: int,
        limit: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.index, self.count, self.limit = index, count, limit
        self.period = min(max(limit / 20, 0.05), 1.0)
        self._board, self._clock = board, clock
        self._own = Record()
        self._records: dict[int, Record] = {}
        now = clock()
        self._changed = dict.fromkeys(range(count), now)  # when a host's record last changed
        self._moved = now  # when the loop of any host last moved
        self._read_at = now  # when the board could last be read
        self._checked = now  # when we last looked ourselves
        self._left_at: dict[int, float] = {}
        self._failed = False  # the last reading of the board
        self._suspicious = False
        self._stop_at: int | None = None
        self._stop_number = 0
        self._news = threading.Condition()
        self._wake, self._over = threading.Event(), threading.Event()

    # What the board says.

    def tick(self) -> None:
        """Renews this host's record and reads those of all; raises what the board raises."""
        with self._news:
            self._own.beats += 1
            text = self._own.dump()
        try:
            self._board.put(str(self.index), text)
            found = {int(key): Record.load(value) for key, value in self._board.read("").items()}
        except BaseException:
            self._failed = True
            raise
        now = self._clock()
        with self._news:
            self._failed, self._read_at = False, now
            if {h: r.looks for h, r in found.items()} != {h: r.looks for h, r in self._records.items()}:
                self._moved = now
            for host, record in found.items():
                if host not in self._records or record.beats != self._records[host].beats:
                    self._changed[host] = now
                if record.left is not None:
                    self._left_at.setdefault(host, now)
            self._records = found
            self._vote()
            self._news.notify_all()

    def _vote(self) -> None:
        """The first sign of a signal anywhere holds our loop where it is; when all are held, all know where to stop.

        The records of hosts that have answered do not change in this any more, so that all come to the same.
        """
        others = self._records.values()
        if self._own.at is None and (self._own.asked or any(record.asked for record in others)):
            self._own.at = self._own.looks
            self._wake.set()
        answers = [record for _, record in sorted(self._records.items()) if record.at is not None]
        if self._stop_at is None and len(answers) == self.count:
            self._stop_number = next(record.asked for record in answers if record.asked)
            self._stop_at = max(record.at for record in answers if record.at is not None) + 1

    @property
    def is_held(self) -> bool:
        """Whether our loop must wait at its next look, because the hosts are agreeing on where to stop."""
        return self._own.at is not None and self._stop_at is None

    def look(self, number: int | None) -> int | None:
        """Whether to stop now; every host's n-th call returns the same.

        Args:
            number: of the signal that this host has received, if any.

        Returns:
            The number of the signal to stop for, or None.
        """
        with self._news:
            if number is not None and not self._own.asked and self._own.at is None:
                self._own.asked = number
                self._wake.set()
            # Held while the hosts agree, a second or two. The devices and the other threads go on, and nobody
            # who is held is waited for: the look that all stop at is later than every host's.
            while self.is_held:
                self._news.wait(0.1)
            self._own.looks += 1
            return self._stop_number if self._stop_at is not None and self._own.looks >= self._stop_at else None

    # Who is lost.

    def find_lost(self) -> Lost | None:
        """The first host that is gone, if any."""
        with self._news:
            now = self._clock()
            if now - self._checked > max(5 * self.period, self.limit / 3):  # we were asleep ourselves: begin anew
                self._read_at = self._moved = now
                self._changed = dict.fromkeys(self._changed, now)
            self._checked = now
            if self._own.left is not None and self._own.left[0]:
                return None  # we are going for a reason of our own, and do not wait long for the others
            return self._find_gone(now) or self._find_silent(now) or self._find_stalled(now)

    def _find_gone(self, now: float) -> Lost | None:
        for host, when in self._left_at.items():
            code, words = self._records[host].left or (0, "")
            if code and now - when >= min(GRACE, self.limit):  # we did not come to the same end by ourselves
                return Lost(host, f"stopped: {words}", code)
        return None

    def _find_silent(self, now: float) -> Lost | None:
        limit = min(self.limit, max(5 * self.period, SUSPICION)) if self._suspicious else self.limit
        if self.index and self._failed and self._suspicious:
            return Lost(0, "cannot be reached any more")  # it keeps the board
        if self.index and now - self._read_at > limit:
            return Lost(0, f"has not been heard of for {limit:.0f} s")
        for host, when in self._changed.items():
            if host != self.index and host not in self._left_at and now - when > limit:
                return Lost(host, f"has not been heard of for {limit:.0f} s")
        return None

    def _find_stalled(self, now: float) -> Lost | None:
        looks = {host: record.looks for host, record in self._records.items() if record.left is None}
        if len(looks) < 2 or now - self._moved <= STALL * self.limit or min(looks.values()) == max(looks.values()):
            return None
        host = min(looks, key=lambda host: looks[host])
        return Lost(host, f"has not come on for {STALL * self.limit:.0f} s while others wait for it")

    def suspect(self) -> None:
        """From now on little is needed to call a host lost: something failed that says one may be."""
        with self._news:
            self._suspicious = True

    # The threads, and the end.

    def start(self, end: Callable[[Lost], None]) -> None:
        """Starts both threads; `end` is called with the first host that is lost."""

        def beat() -> None:
            while not self._over.is_set():
                try:
                    self.tick()
                except Exception:  # the board is away: `find_lost` will say so if it stays away
                    self._wake.wait(self.period)
                self._wake.wait(0.02 if self.is_held else self.period)
                self._wake.clear()

        def check() -> None:
            while not self._over.wait(self.period):
                lost = self.find_lost()
                if lost is not None and not self._over.is_set():
                    end(lost)

        for target in (beat, check):  # two: writing to a board that is stuck must not stop the clock
            threading.Thread(target=target, name=f"watch-{target.__name__}", daemon=True).start()

    def leave(self, code: int, words: str, *, patience: float) -> bool:
        """Tells the others that we go, and waits until all go.

        Args:
            code: of our exit.
            words: why.
            patience: seconds to wait for them.

        Returns:
            Whether all hosts have left.
        """
        with self._news:
            self._own.left = (code, words[:2000])
            self._wake.set()
            until = time.monotonic() + patience
            while len(self._left_at) < self.count:
                if time.monotonic() >= until:
                    return False
                self._news.wait(0.05)
            return True

    def stop(self) -> None:
        """Ends the threads."""
        self._over.set()
        self._wake.set()

"""Which of the addresses of stage 0's name is the stage 0 to follow, and what to dial meanwhile.

Pure: it knows no socket, thread or clock (time is an argument). A name may have several addresses
(a pod that ends beside its successor), none (DNS is down), or those of half a minute ago. So:

1. While stage 0 is not heard the name is looked up again and again, every address is dialled, and
   the first that answers as a stage 0 of this very pipeline is followed. An address that stays
   dumb is dialled anew from time to time, for a connection may be dead without saying so.
2. A stage 0 that is heard is followed, and nobody else is spoken to. An incarnation that was left
   for another is never followed again: it is yesterday's, whatever it says.
3. A stage 0 whose address the name has not had for longer than any answer may be old is doubted:
   the others are asked too, and the first that answers takes its place.
4. While it is not heard, an address that the name has lost meanwhile is not followed, the one of
   before neither: it was replaced, and may speak again before its successor does. An answer of
   nothing but addresses that were left says nothing: it is an old one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

LOOK_UP_S = 0.5
"""Seconds between two look-ups while stage 0 is not heard, ..."""

LOOK_AGAIN_S = 15.0
"""... and while it is."""

STALE_S = 45.0
"""An answer may be half a minute old (a cache's time to live), and a look-up may take a while."""

DIAL_AGAIN_S = 5.0
"""An address that has said nothing for so long is dialled anew."""

LEFT_KEPT = 64


@dataclass(slots=True)
class Candidate:
    """One dialled address."""

    dialled_s: float
    heard_s: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be done now: hang up, then dial; look the name up; to whom to speak."""

    drop: tuple[str, ...] = ()
    dial: tuple[str, ...] = ()
    look_up: bool = False
    speak: tuple[str, ...] = ()


@dataclass(slots=True)
class HeadChoice:
    """`fixed` addresses need no look-up: the configuration had a literal one."""

    suspect_after_s: float
    fixed: tuple[str, ...] = ()
    head: str = ""  # the address that is followed; "" before the first
    incarnation: bytes = b""
    _listed: tuple[str, ...] = ()  # the name's addresses, by the last answer
    _head_listed_s: float = 0.0
    _asked_s: float = float("-inf")
    _answered_s: float = float("-inf")  # when the last answer was asked for
    _dialled: dict[str, Candidate] = field(default_factory=dict)
    _left: deque[bytes] = field(default_factory=lambda: deque(maxlen=LEFT_KEPT))
    _left_behind: deque[str] = field(default_factory=lambda: deque(maxlen=LEFT_KEPT))  # addresses

    def __post_init__(self) -> None:
        self._listed = self.fixed

    def looked_up(self, addresses: Sequence[str], now_s: float) -> None:
        """An answer came; an empty one is none."""
        if addresses:
            self._listed = tuple(dict.fromkeys(addresses))
            self._answered_s = self._asked_s
            if self.head in self._listed:
                self._head_listed_s = now_s

    def heard(self, address: str, incarnation: bytes, now_s: float) -> bool:
        """A frame of a stage 0 of this pipeline came; whether it is the one to follow."""
        if not self.may_follow(address, incarnation, now_s):
            return False
        if address != self.head:
            if self.head:
                self._left_behind.append(self.head)
            self.head, self._head_listed_s = address, now_s
        if incarnation != self.incarnation:
            if self.incarnation:
                self._left.append(self.incarnation)
            self.incarnation = incarnation
        self._dialled[address].heard_s = now_s
        return True

    def may_follow(self, address: str, incarnation: bytes, now_s: float) -> bool:
        """Whether a stage 0 there is the one to follow, or may become it: not one of yesterday."""
        if address not in self._dialled or incarnation in self._left:
            return False
        if self.is_heard(now_s):
            return address == self.head or self._is_doubted(now_s)
        return address in self._listed or not self._knows_better()

    def is_heard(self, now_s: float) -> bool:
        """Whether the followed stage 0 has spoken lately."""
        candidate = self._dialled.get(self.head)
        return candidate is not None and now_s - candidate.heard_s <= self.suspect_after_s

    def turn(self, now_s: float) -> Turn:
        """What to do now; it is taken as done."""
        settled = self.is_heard(now_s) and not self._is_doubted(now_s)
        wanted = (self.head,) if settled else tuple(dict.fromkeys((self.head, *self._listed)))
        wanted = tuple(address for address in wanted if address)
        drop = [a for a in self._dialled if a not in wanted or self._is_dumb(a, now_s)]
        for address in drop:
            del self._dialled[address]
        dial = [address for address in wanted if address not in self._dialled]
        for address in dial:
            self._dialled[address] = Candidate(now_s)
        wait_s = LOOK_AGAIN_S if settled else LOOK_UP_S
        look_up = not self.fixed and now_s - self._asked_s >= wait_s
        if look_up:
            self._asked_s = now_s
        return Turn(tuple(drop), tuple(dial), look_up, wanted)

    def _knows_better(self) -> bool:
        """Whether the name was answered since the silence began, and not from an old memory."""
        candidate = self._dialled.get(self.head)
        is_news = candidate is None or self._answered_s > candidate.heard_s
        return is_news and any(a not in self._left_behind for a in self._listed)

    def _is_doubted(self, now_s: float) -> bool:
        elsewhere = bool(self._listed) and self.head not in self._listed
        return elsewhere and now_s - self._head_listed_s > STALE_S

    def _is_dumb(self, address: str, now_s: float) -> bool:
        candidate = self._dialled[address]
        return now_s - max(candidate.heard_s, candidate.dialled_s) > DIAL_AGAIN_S

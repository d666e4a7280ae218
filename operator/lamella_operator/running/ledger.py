"""What the watches have delivered, so that a LIST can tell what they have not.

Keeps of each object its UID, version, model and the time of its last event, and nothing else. Knows
no client and no kopf. A *scope* is one watch: a namespace, or "" for the whole cluster. Times are
monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from weakref import WeakValueDictionary

from lamella_operator.reconciling.observe import ModelKey

LATE_S = 30.0  # after which a version that a LIST showed should have come by the watch


@dataclass(frozen=True, slots=True)
class Listed:
    """One object as a LIST of metadata shows it; ``key`` None: it names no model."""

    uid: str
    version: str
    key: ModelKey | None


@dataclass(slots=True)
class _Entry:
    version: str
    key: ModelKey | None
    at_s: float


class Ledger:
    """One for the whole operator."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], dict[str, _Entry]] = {}  # by scope and kind, then UID
        self._missing: dict[tuple[str, str], dict[str, float]] = {}  # not delivered: since when
        self._gone_s: dict[tuple[str, str], dict[str, float]] = {}  # lately told deleted: when
        self._keys: WeakValueDictionary[str, ModelKey] = WeakValueDictionary()  # by the model's UID

    def delivered(
        self, scope: str, kind: str, seen: Listed, now_s: float, *, gone: bool = False
    ) -> bool:
        """A watch told of an object, or (``gone``) of its deletion; whether that is news.

        A watch that begins anew tells of everything again.
        """
        place = (scope, kind)
        self._missing.get(place, {}).pop(seen.uid, None)
        entries = self._entries.setdefault(place, {})
        if gone:
            entries.pop(seen.uid, None)
            self._gone_s.setdefault(place, {})[seen.uid] = now_s
            return True
        entry = entries.get(seen.uid)
        if entry is not None and entry.version == seen.version:
            entry.at_s = now_s
            return False
        entries[seen.uid] = _Entry(seen.version, self._one(seen.key), now_s)
        return True

    def compare(
        self, scope: str, kind: str, listed: Iterable[Listed], began_s: float, now_s: float
    ) -> set[ModelKey]:
        """Models of which a LIST that was sent at ``began_s`` shows what no watch delivered.

        What the LIST shows is written down too, so that each difference is told once.
        """
        place = (scope, kind)
        entries = self._entries.setdefault(place, {})
        missing = self._missing.setdefault(place, {})
        gone_s = self._gone_s.pop(place, {})
        different: set[ModelKey | None] = set()
        there: set[str] = set()
        for one in listed:
            there.add(one.uid)
            entry = entries.get(one.uid)
            if entry is not None and (entry.version == one.version or entry.at_s >= began_s):
                continue
            if gone_s.get(one.uid, -1.0) >= began_s:
                continue
            missing.setdefault(one.uid, now_s)
            entries[one.uid] = _Entry(one.version, self._one(one.key), now_s)
            different.add(one.key)
        for uid in [uid for uid in entries if uid not in there]:
            if entries[uid].at_s < began_s:  # deleted, and nobody said so
                different.add(entries.pop(uid).key)
        for uid in [uid for uid in missing if uid not in there]:
            del missing[uid]  # it went before the watch could tell of it
        return {key for key in different if key is not None}

    def lag_s(self, scope: str, now_s: float) -> float:
        """For how long the watch of ``scope`` has owed a version; 0.0 when it owes none."""
        owed = [
            since_s
            for (place, _), missing in self._missing.items()
            if place == scope
            for since_s in missing.values()
        ]
        return now_s - min(owed) if owed else 0.0

    def owes(self, scope: str) -> bool:
        """Whether the watch of ``scope`` owes a version at all."""
        return any(
            place == scope and bool(missing) for (place, _), missing in self._missing.items()
        )

    def excuse(self, scope: str, now_s: float) -> None:
        """The API server was away, or the watch was down: what it owes counts from now."""
        for place, kind in list(self._gone_s):
            if place == scope:
                del self._gone_s[place, kind]
        for (place, _), missing in self._missing.items():
            if place == scope:
                missing.update(dict.fromkeys(missing, now_s))

    def keys(self, kind: str) -> Iterator[ModelKey]:
        """The models that objects of a kind belong to."""
        for (_, known), entries in self._entries.items():
            if known == kind:
                yield from (entry.key for entry in entries.values() if entry.key is not None)

    def _one(self, key: ModelKey | None) -> ModelKey | None:
        """``key`` as it is kept already: a model has some twenty objects."""
        if key is None:
            return None
        kept = self._keys.get(key.uid)
        if kept == key:
            return kept
        self._keys[key.uid] = key
        return key

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._entries.values())

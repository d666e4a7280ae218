"""Which events wake a model: all but the echoes of this process's own writes.

Whoever writes knows already what its echo tells. An echo may come before the answer to the write
does, so what happens to a model at work is looked at when its round is over. Of the writes only
those are told here after which there is nothing more to decide, see `client.Wrote`. Knows no kopf
and no client.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lamella_operator.reconciling.client import TO_THE_END
from lamella_operator.reconciling.observe import ModelKey
from lamella_operator.running.workqueue import WorkQueue


@dataclass(slots=True)
class Wakes:
    """Between the watches and ``queue``."""

    queue: WorkQueue[ModelKey]
    _ours: dict[str, str] = field(default_factory=dict)  # version last written, by UID
    _held: dict[ModelKey, list[tuple[str, str, bool]]] = field(default_factory=dict)

    def wrote(self, uid: str, version: str) -> None:
        """This process has made ``version`` of an object; its echo is awaited."""
        self._ours[uid] = version

    def told(self, key: ModelKey, uid: str, version: str, *, gone: bool) -> None:
        """A watch tells something new of an object of the model ``key``."""
        if self.queue.is_at_work(key):
            self._held.setdefault(key, []).append((uid, version, gone))
        elif not self._is_echo(uid, version, gone):
            self.queue.add(key)

    def rested(self, key: ModelKey) -> None:
        """A round of ``key`` is over, and the queue does not know it yet."""
        news = [each for each in self._held.pop(key, ()) if not self._is_echo(*each)]
        if news:
            self.queue.add(key)

    def _is_echo(self, uid: str, version: str, gone: bool) -> bool:
        ours = self._ours.get(uid)
        if gone or ours == version:
            self._ours.pop(uid, None)
        return ours == TO_THE_END or (ours == version and not gone)

"""Chooses the replica for a request: least outstanding tokens, equal prefixes to the same one.

Pure: knows prompt ids and counts, no sockets and no clock. A replica is one whole pipeline, named
by its address. Other gateways have requests there too: where this one's own count says nothing, a
replica's own count of requests does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

BLOCK_TOKENS = 64  # prefixes are compared in steps of this many tokens
REMEMBERED_PREFIXES = 16_384  # about 1 MB; the oldest are forgotten first
MAX_BLOCKS = 64  # a prefix longer than this many blocks tells us nothing more
NOBODY: Mapping[str, int] = {}


class Balancer:
    """Remembers which replica saw which prefix, and how many tokens each still owes.

    A prefix wins only while its replica owes at most ``slack_tokens`` more than the idlest one:
    a warm cache saves a prefill, it does not outweigh a queue.
    """

    def __init__(self, *, slack_tokens: int = 4096) -> None:
        self._slack_tokens = slack_tokens
        self._prefixes: OrderedDict[int, str] = OrderedDict()  # hash of a prefix -> replica

    def pick(
        self,
        prompt_ids: Sequence[int],
        outstanding: Mapping[str, int],
        busy: Mapping[str, int] = NOBODY,
    ) -> str | None:
        """One of ``outstanding`` (ready replica -> tokens it owes), or None when there is none.

        ``busy`` says how many requests each has by its own word, and decides between equals.
        """
        if not outstanding:
            return None
        least = min(outstanding, key=lambda replica: (outstanding[replica], busy.get(replica, 0)))
        hashes = list(_prefix_hashes(prompt_ids))
        chosen = least
        for digest in reversed(hashes):
            warm = self._prefixes.get(digest)
            if warm is None or warm not in outstanding:
                continue
            if outstanding[warm] <= outstanding[least] + self._slack_tokens:
                chosen = warm
            break
        self._remember(hashes, chosen)
        return chosen

    def forget(self, replica: str) -> None:
        """A replica lost its caches: its prefixes are worth nothing now."""
        self._prefixes = OrderedDict(
            (digest, seen) for digest, seen in self._prefixes.items() if seen != replica
        )

    def _remember(self, hashes: Sequence[int], replica: str) -> None:
        for digest in hashes:
            self._prefixes[digest] = replica
            self._prefixes.move_to_end(digest)
        while len(self._prefixes) > REMEMBERED_PREFIXES:
            self._prefixes.popitem(last=False)


def _prefix_hashes(ids: Sequence[int]) -> Iterator[int]:
    """Hashes of the first 1, 2, 3... whole blocks of ``ids``; each seals all before it."""
    digest = 0
    for block in range(min(len(ids) // BLOCK_TOKENS, MAX_BLOCKS)):
        begin = block * BLOCK_TOKENS
        digest = hash((digest, tuple(ids[begin : begin + BLOCK_TOKENS])))
        yield digest

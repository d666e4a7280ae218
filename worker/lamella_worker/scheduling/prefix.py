"""Which blocks hold the keys and values of which beginning of a prompt.

Knows no tensor, no steps and no ownership of blocks: it maps what a full block holds to the blocks
that hold it. What a block holds follows from its own ids and from all before them, so its name is
a hash of the name of the block before and of its ids; before the first stands the request's salt.
In the flow: `running` names blocks here once all stages have computed them, and asks for those that
a newcomer begins with.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

NAME_BYTES = 16


def chain(names: list[bytes], salt: bytes, ids: Sequence[int], block_size: int, end: int) -> None:
    """Append to ``names``, one for each full block of ``ids`` so far, up to block ``end``."""
    for index in range(len(names), end):
        before = names[-1] if names else salt
        own = array("I", ids[index * block_size : (index + 1) * block_size])
        names.append(blake2b(before + own.tobytes(), digest_size=NAME_BYTES).digest())


class PrefixIndex:
    """Names of blocks and back; more blocks than one may hold the same."""

    def __init__(self) -> None:
        self._name: dict[int, bytes] = {}
        self._blocks: dict[bytes, list[int]] = {}

    def __len__(self) -> int:
        return len(self._name)

    def __contains__(self, block: object) -> bool:
        return block in self._name

    def put(self, block: int, name: bytes) -> None:
        """All stages hold this in ``block`` from now on."""
        if self._name.get(block) == name:
            return
        self.drop(block)
        self._name[block] = name
        self._blocks.setdefault(name, []).append(block)

    def drop(self, block: int) -> None:
        """``block`` will hold something else, or is not to be trusted."""
        name = self._name.pop(block, None)
        if name is None:
            return
        others = self._blocks[name]
        others.remove(block)
        if not others:
            del self._blocks[name]

    def drop_doubles(self, blocks: Sequence[int]) -> None:
        """Forget those of ``blocks`` whose content other blocks hold as well."""
        for block in blocks:
            name = self._name.get(block)
            if name is not None and len(self._blocks[name]) > 1:
                self.drop(block)

    def clear(self) -> None:
        self._name.clear()
        self._blocks.clear()

    def find(self, name: bytes, before: int) -> int:
        """A block that holds this, right behind block ``before`` if there is one; -1 for none."""
        found = self._blocks.get(name)
        if found is None:
            return -1
        return before + 1 if before + 1 in found else found[0]

    def name_of(self, block: int) -> bytes | None:
        return self._name.get(block)

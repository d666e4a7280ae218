"""API keys: which are allowed, and whether a request carries one.

Knows a file and a header. Comparison takes the same time whatever the key given: digests of equal
length are compared, all of them, each in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from lamella_contract.errors import InvalidConfig

from .errors import unauthorized


class ApiKeys:
    """The allowed keys; none given means that everyone is let in."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def load(cls, path: str) -> ApiKeys:
        """One key per line; empty lines and lines that begin with # are skipped.

        ``path`` "" lets everyone in. A file without a key is refused (`InvalidConfig`): it was
        surely not meant to open the door.
        """
        if not path:
            return cls(())
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as reason:
            raise InvalidConfig(f"api_keys_file: cannot read {path!r}: {reason}") from reason
        keys = tuple(line.strip() for line in lines if line.strip() and line.strip()[0] != "#")
        if not keys:
            raise InvalidConfig(f"api_keys_file: {path!r} holds no key")
        return cls(keys)

    def check(self, authorization: str | None) -> None:
        """`ApiError` 401 unless the header carries an allowed key."""
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise unauthorized(
                "You didn't provide an API key. Send it in the header 'Authorization: Bearer KEY'."
            )
        given = _digest(key.strip())
        known = False
        for allowed in self._digests:  # all of them: to stop at a match would tell which it was
            known |= hmac.compare_digest(given, allowed)
        if not known:
            raise unauthorized("Incorrect API key provided.")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

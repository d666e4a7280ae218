"""What a stage that ends for good leaves behind: one small JSON document, without secrets.

Knows errors and a file's path. On a cluster the file is the container's termination log, which is
read once the container has ended: ``{"kind": ..., "message": ...}``, the kind as in
`lamella_contract.errors`. Nothing here raises: the stage ends anyway.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from lamella_contract.config import StageConfig
from lamella_contract.errors import LamellaError

log = logging.getLogger(__name__)

MOST_BYTES = 2048
"""Of the whole document; Kubernetes cuts at 4096 without a word."""

HIDDEN = "***"

_SECRETS = (
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),  # the hub's tokens
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),  # user and password of an address
    re.compile(r"(?i)(?<=bearer )\S+"),
    re.compile(r"(?<=[?])[^\s'\"]*(?:[Ss]ignature|[Tt]oken|[Kk]ey)=[^\s'\"]*"),  # signed addresses
)


def leave(path: str, error: LamellaError, secrets: Iterable[str] = ()) -> None:
    """Write the document to `path` ("": nowhere), in one piece."""
    if not path:
        return
    try:
        # No new file beside it that takes its place: the log is a mount of its own.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, document(error.kind, redacted(str(error), secrets)))
        finally:
            os.close(descriptor)
    except OSError as reason:
        log.warning("the termination log cannot be written", extra={"error": str(reason)})


def document(kind: str, message: str) -> bytes:
    """The JSON, of at most `MOST_BYTES`: a long message is cut in its middle."""
    keep = len(message)
    while True:
        cut = message
        if keep < len(message):
            cut = f"{message[: keep * 2 // 3]} ... {message[-(keep // 3) :]}"
        text = json.dumps({"kind": kind, "message": cut}, ensure_ascii=False).encode(
            "utf-8", "replace"
        )
        if len(text) <= MOST_BYTES:
            return text
        keep = keep * 3 // 4


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without `secrets` and without what looks like one."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, HIDDEN)
    for pattern in _SECRETS:
        text = pattern.sub(HIDDEN, text)
    return text


def secrets_of(config: StageConfig) -> list[str]:
    """What this stage knows and must not tell: the hub's token and its own secret key."""
    found = []
    for path in (config.hub_token_file, config.key_file):
        try:
            text = Path(path).read_text().strip() if path else ""
        except (OSError, UnicodeDecodeError):
            continue
        try:
            found.append(str(json.loads(text)["secret"]))
        except (ValueError, KeyError, TypeError):
            found.append(text)
    return found

"""Words that come from elsewhere, made fit for a status: without secrets, and not too long.

Knows no condition. Logs and exception texts go into a status that many may read, so tokens, keys
and what stands in URLs beside the address are taken out; too much is taken rather than too little.
"""

from __future__ import annotations

import re

HIDDEN = "***"
CUT = " …"
LOOK_BEYOND = 2  # times as much is looked at as is kept, so that long words cost no time

_WORD = (
    r"[\w-]{0,40}(?:token(?!s)|secret|passw(?:or)?d|api[_-]?key|access[_-]?key|credential|signature"
    r"|authorization)[\w-]{0,40}"
)
"""A name that says that its value is a secret; ``tokens`` are counted all over."""
_VALUE = r"(?!\*\*\*|\d+\b)[^\s,;\"'}\])]"

_PATTERNS = (
    # what stands before the @ of an address, and behind its ? (signed addresses are keys)
    (re.compile(r"(\b[a-zA-Z][\w+.-]{0,20}://)[^\s/@'\"]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(\b[a-zA-Z][\w+.-]{0,20}://[^\s?'\"]{1,2048}\?)[^\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    # name=value; "name": "value"; name: value, if that does not read like a sentence
    (re.compile(rf"(?i)\b({_WORD}\s*=\s*[\"']?){_VALUE}{{4,}}"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)([\"']{_WORD}[\"']\s*:\s*[\"'])[^\"']+"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)\b({_WORD}:\s*)(?=\S*\d){_VALUE}{{8,}}"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)\b([\w-]{{0,40}}passw(?:or)?d:\s*){_VALUE}+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}"), HIDDEN),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{16,}"), HIDDEN),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), HIDDEN),
    (re.compile(r"-----BEGIN [A-Z ]*KEY-----.*?(?:-----END [A-Z ]*KEY-----|\Z)", re.S), HIDDEN),
)


def redacted(text: str) -> str:
    """``text`` without what looks like a secret."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def line(text: str, most_bytes: int) -> str:
    """One line of at most ``most_bytes`` bytes, without secrets."""
    return cut(redacted(" ".join(_clean(text[: LOOK_BEYOND * most_bytes]).split())), most_bytes)


def block(text: str, most_bytes: int) -> str:
    """Lines as they are, at most ``most_bytes`` bytes, without secrets.

    The end is kept: an exception's last line says most.
    """
    text = redacted(_clean(text[-LOOK_BEYOND * most_bytes :])).strip()
    raw = text.encode()
    if len(raw) <= most_bytes:
        return text
    kept = raw[len(raw) - most_bytes + len(CUT.encode()) :].decode(errors="ignore")
    return CUT.strip() + " " + kept


def cut(text: str, most_bytes: int) -> str:
    """The beginning of ``text``, at most ``most_bytes`` bytes with the mark that it was cut."""
    raw = text.encode()
    if len(raw) <= most_bytes:
        return text
    return raw[: most_bytes - len(CUT.encode())].decode(errors="ignore").rstrip() + CUT


def _clean(text: str) -> str:
    """Without what JSON or a terminal cannot show."""
    text = text.encode(errors="replace").decode()
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)

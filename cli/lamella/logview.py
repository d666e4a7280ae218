"""What the children log, as the user sees it, and why a child failed.

Children are told to log JSON (`lamella_contract.logs`); a line that is none (a traceback, a
library's own words) is kept as it is. Knows lines and a console, nothing of processes.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape

from lamella_contract import names

CHILD_ENV = {names.ENV_LOG_FORMAT: "json"}
_LOUD = frozenset({"WARNING", "ERROR", "CRITICAL"})
_KNOWN = frozenset({"time", "level", "role", "logger", "message", "exception"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a child: who said it, how loud, the words, and the facts beside them."""

    role: str
    level: str
    message: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    exception: str = ""

    @property
    def loud(self) -> bool:
        """Whether the user should see it without asking."""
        return self.level in _LOUD


def parse(name: str, line: str) -> Entry:
    """The entry in one line of the child `name`."""
    try:
        document = json.loads(line)
        facts = {key: value for key, value in document.items() if key not in _KNOWN}
        return Entry(
            role=str(document["role"]),
            level=str(document["level"]),
            message=str(document["message"]),
            facts=facts,
            exception=str(document.get("exception", "")),
        )
    except (ValueError, KeyError, AttributeError):
        return Entry(name, "", line)


def failure(name: str, code: int, lines: Iterable[str]) -> str:
    """One sentence on why a child ended, from what it said: its first error, else its last
    words."""
    entries = [parse(name, line) for line in lines if line.strip()]
    errors = [entry for entry in entries if entry.level in ("ERROR", "CRITICAL")]
    # An error of our own tree carries its kind and says what to do; what follows it are
    # consequences.
    ours = [entry for entry in errors if "kind" in entry.facts]
    chosen = next(iter(ours or errors), entries[-1] if entries else None)
    if chosen is None:
        return f"{name} ended with code {code} and said nothing"
    last = chosen.exception.strip().splitlines()[-1] if chosen.exception.strip() else ""
    return f"{chosen.role}: {chosen.message}{f': {last}' if last else ''}"


class LogView:
    """Prints entries above whatever else the console shows."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose

    def take(self, name: str, line: str) -> None:
        """Shows the line, or not."""
        entry = parse(name, line)
        if not (entry.loud or self._verbose):
            return
        facts = " ".join(f"{key}={value}" for key, value in entry.facts.items())
        text = " ".join(part for part in (entry.role, entry.level, entry.message, facts) if part)
        style = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}.get(entry.level, "dim")
        self._console.print(f"[{style}]{escape(text)}[/]", highlight=False, soft_wrap=True)
        if entry.exception and self._verbose:
            self._console.print(escape(entry.exception), style="dim", highlight=False)


def supervisor_line(level: str, message: str, **facts: object) -> str:
    """A line of the supervisor's own, in the children's form."""
    document = {"level": level, "role": "supervisor", "message": message, **facts}
    return json.dumps(document, default=str)

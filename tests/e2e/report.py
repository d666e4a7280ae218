"""What the tests saw, one row per fault, as JSON for machines and Markdown for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One fault. Seconds; None where it does not apply."""

    fault: str
    seen: str
    failed_requests: str = ""
    longest_pause_s: float | None = None
    recovered_s: float | None = None


class Table:
    """Rows by fault in the order of their first writing, kept in a folder over runs."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._rows: dict[str, Row] = {}
        if folder is not None and (folder / "faults.json").is_file():
            for fields in json.loads((folder / "faults.json").read_text()):
                self._rows[fields["fault"]] = Row(**fields)

    def add(self, row: Row) -> None:
        self._rows[row.fault] = row
        print(f"\n  {row}")  # noqa: T201  the run's own account, with pytest -s
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = list(self._rows.values())
        (self._folder / "faults.json").write_text(json.dumps([asdict(r) for r in rows], indent=1))
        (self._folder / "faults.md").write_text(markdown(rows))

    def keep(self, name: str, text: str) -> None:
        """A text as it was seen, such as `kubectl get -w`."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(text + "\n")


def markdown(rows: list[Row]) -> str:
    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.1f} s"

    lines = [
        "| fault | what was seen | failed requests | longest silence for a client | whole again |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (row.fault, row.seen, row.failed_requests)
        lines.append(
            f"| {' | '.join(cells)} | {cell(row.longest_pause_s)} | {cell(row.recovered_s)} |"
        )
    return "\n".join(lines) + "\n"

"""`lamella status`: what runs on this machine, and why it is not ready when it is not.

Knows the status file that each `lamella serve` leaves in its run directory while it runs, and asks
the stages.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lamella import rundir, show, watch
from lamella_contract import names


@dataclass(frozen=True, slots=True)
class Run:
    """One `lamella serve` on this machine, and what its parts say now."""

    document: dict[str, Any]
    snapshot: watch.Snapshot

    def as_json(self) -> dict[str, Any]:
        """Everything, as a JSON object."""
        return {
            **self.document,
            "ready": self.snapshot.ready,
            "reason": self.snapshot.reason,
            "stages": [
                stage.document or {"stage": stage.stage, "state": stage.state}
                for stage in self.snapshot.stages
            ],
        }


def runs(directories: list[Path] | None = None) -> list[Run]:
    """Every run of this user whose supervisor lives."""
    found = []
    for path in directories if directories is not None else _run_directories():
        try:
            document = json.loads((path / names.STATUS_FILE).read_text(encoding="utf-8"))
            os.kill(int(document["pid"]), 0)
            ports = tuple(int(port) for port in document["probe_ports"])
            snapshot = watch.look(ports, str(document["host"]), int(document["port"]))
        except (OSError, ValueError, KeyError, TypeError):
            # Being made, being removed, another user's, or left by a machine that lost its power.
            continue
        found.append(Run(document, snapshot))
    return found


def show_status(output: str, out: Console) -> int:
    """Prints all runs; 0 when each is ready, 1 otherwise (also when there is none)."""
    found = runs()
    if output == "json":
        text = json.dumps([run.as_json() for run in found], indent=2)
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    elif not found:
        out.print("nothing runs here; start something with: lamella serve MODEL")
    else:
        for run in found:
            _show_run(run, out)
    return 0 if found and all(run.snapshot.ready for run in found) else 1


def _show_run(run: Run, out: Console) -> None:
    document = run.document
    state = "ready" if run.snapshot.ready else f"not ready: {run.snapshot.reason}"
    out.print(
        f"{document['name']} at http://{document['host']}:{document['port']} "
        f"(pid {document['pid']}): {state}",
        markup=False,
        highlight=False,
    )
    ends = [*document["splits"][1:], document["num_layers"]]
    rows = [
        (
            str(stage.stage),
            f"{first} to {end - 1}",
            stage.state,
            str(stage.pid or "-"),
            show.size(int(stage.document.get("peak_rss_bytes") or 0)),
            show.number(int(stage.document.get("steps") or 0)),
            f"{int(stage.document.get('compute_ns') or 0) / 1e9:.1f} s",
            stage.error,
        )
        for stage, first, end in zip(run.snapshot.stages, document["splits"], ends, strict=True)
    ]
    columns = ("stage", "layers", "state", "pid", "peak memory", "steps", "compute", "error")
    out.print(show.table(columns, rows))


def _run_directories() -> list[Path]:
    bases = {os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()} - {""}
    return sorted(
        path for base in bases for path in Path(base).glob(f"{rundir.PREFIX}*") if path.is_dir()
    )

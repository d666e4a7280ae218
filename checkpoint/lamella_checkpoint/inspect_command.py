"""Inspects one model and leaves what it found where the asker looks: a profile, or why not.

Knows arguments, a deadline and the message; `inspector` knows models. The message is
`lamella_contract.profile_message`'s: a pod's termination log holds it, 4,096 bytes at most. Every
way to fail is a typed failure in the message and exit code 1. The token is never printed.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lamella_checkpoint.notorch import hide_torch
from lamella_checkpoint.progress import ProgressSnapshot
from lamella_checkpoint.source import open_source
from lamella_contract import logs, names, profile_message
from lamella_contract.errors import HubUnreachable, InvalidConfig, LamellaError
from lamella_contract.profile import ModelProfile

DEADLINE_S = 270.0
"""Less than the 300 s that a pod is given: the message must be written before those are over."""
EXIT_FAILED = 1

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Inspection:
    """One inspection, in a thread of its own: a hub that stalls must not hold the deadline up."""

    uri: str
    revision: str | None
    dtype: str | None
    quantization: str
    token_file: str
    cache_dir: str
    found: ModelProfile | LamellaError | None = None
    seen: ProgressSnapshot | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            self.found = self._inspect()
        except LamellaError as failure:
            self.found = failure
        except Exception as bug:  # a thread's edge: whatever it is, the asker is told
            _log.exception("the inspection failed")
            self.found = LamellaError(f"{self.uri}: {type(bug).__name__}: {bug}")
        finally:
            self.done.set()

    def _inspect(self) -> ModelProfile:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        # the hub client would look up what it is run by: a request, and a file in HOME
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        hide_torch()  # config classes need none
        from lamella_checkpoint.inspector import inspect

        source = open_source(
            self.uri,
            revision=self.revision,
            cache_dir=Path(self.cache_dir) if self.cache_dir else None,
            token=_token(self.token_file),
            on_progress=self._saw,
        )
        try:
            return inspect(source, dtype=self.dtype, stored=self.quantization)
        finally:
            source.close()

    def _saw(self, snapshot: ProgressSnapshot) -> None:
        self.seen = snapshot

    def overdue(self, deadline_s: float) -> LamellaError:
        """The failure when the deadline passed."""
        bytes_done = self.seen.bytes_done if self.seen else 0
        return HubUnreachable(
            f"{self.uri}: not inspected within {deadline_s:g} s, with {bytes_done} bytes read: the "
            "hub or the disk is too slow, or the network loses its answers"
        )


def run(argv: Sequence[str]) -> int:
    """Inspect as ``argv`` says and write the message; 0 with a profile in it, 1 with a failure."""
    options = _arguments(argv)
    logs.configure(names.ROLE_INSPECTOR)
    began_s = time.monotonic()
    inspection = Inspection(
        options.uri,
        options.revision,
        options.dtype,
        options.quantization,
        options.token_file,
        options.cache_dir,
    )
    threading.Thread(target=inspection.run, name="inspection", daemon=True).start()
    inspection.done.wait(options.deadline)
    found = inspection.found or inspection.overdue(options.deadline)
    if isinstance(found, ModelProfile):
        try:
            text = profile_message.pack(found)
        except InvalidConfig as failure:
            found = failure
    if isinstance(found, LamellaError):
        text = profile_message.pack_failure(found)
        sys.stderr.write(f"lamella inspect: {found}\n")
    else:
        spent_s = round(time.monotonic() - began_s, 2)
        _log.info("inspected", extra={"uri": found.uri, "seconds": spent_s, "chars": len(text)})
    written = _write(options.message_file, text)
    return 0 if written and isinstance(found, ModelProfile) else EXIT_FAILED


def _write(path: str, text: str) -> bool:
    if not path:
        sys.stdout.write(f"{text}\n")
        return True
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as reason:
        sys.stderr.write(f"lamella inspect: --message-file: cannot write {path!r}: {reason}\n")
        return False
    return True


def _token(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as reason:
        raise InvalidConfig(f"--token-file: cannot read {path!r}: {reason}") from reason


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lamella_checkpoint")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="read a model's config and headers")
    inspect.add_argument("--uri", required=True, help="hf://org/name, file:PATH or a folder")
    inspect.add_argument("--revision", help="branch, tag or commit of a hub's model")
    inspect.add_argument("--dtype", choices=names.DTYPES, help="what it will be served in")
    inspect.add_argument("--quantization", choices=names.QUANTIZATIONS, default="none")
    inspect.add_argument("--token-file", default="", help="a file with the hub's token")
    inspect.add_argument("--message-file", default="", help="where the result goes (else stdout)")
    inspect.add_argument("--cache-dir", default="", help="where read ranges are kept")
    inspect.add_argument(
        "--deadline", type=float, default=DEADLINE_S, help="seconds after which it has failed"
    )
    return parser.parse_args(argv)

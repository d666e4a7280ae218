"""The private directory of one run: stage configs, key files, nothing that outlives the run.

Knows nothing of what the files mean. `serve` makes one, `local` removes it at the end, and the
janitor removes it when the supervisor was killed outright.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import zmq

PREFIX = "lamella-"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, both halves in z85 (40 characters each)."""

    public: str
    secret: str


def mint_key_pair() -> KeyPair:
    """A fresh CURVE key pair. Local pipelines are keyed too: loopback is shared by all users."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


class RunDirectory:
    """A directory with mode 0700; every file in it is written with mode 0600."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls) -> "RunDirectory":
        """Under $XDG_RUNTIME_DIR (memory, this user's only) when there is one, else the temp
        dir."""
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        base = runtime if runtime and os.access(runtime, os.W_OK | os.X_OK) else None
        return cls(Path(tempfile.mkdtemp(prefix=PREFIX, dir=base)))

    def file(self, name: str) -> Path:
        """Where the file of that name is or will be."""
        return self.path / name

    def write(self, name: str, text: str) -> Path:
        """Writes a file that only this user can read; it appears whole or not at all."""
        target = self.path / name
        partial = self.path / f".{name}.partial"
        partial.unlink(missing_ok=True)  # left by a disk that was full
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
        partial.rename(target)
        return target

    def write_keys(self, name: str, keys: KeyPair) -> Path:
        """The key file of one process, as `lamella_contract.config` describes it."""
        return self.write(name, json.dumps({"public": keys.public, "secret": keys.secret}))

    def remove(self) -> None:
        """Removes the directory and all in it; no error when it is gone already."""
        shutil.rmtree(self.path, ignore_errors=True)

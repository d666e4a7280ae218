"""A disk that becomes full in the middle of a download: a clear error, and what came is kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACE = ("unshare", "-Urm")
MOUNT = 'mount -t tmpfs -o size=24m none "$1" && exec "$2" -c "$3" "$1"'

DOWNLOAD = """
import hashlib, shutil, sys
from pathlib import Path
from lamella_checkpoint.errors import DiskFull
from lamella_checkpoint.rangecache import ExtentWriter, RangeCache

SIZE, PIECE = 16 << 20, 64 << 10
folder = Path(sys.argv[1])
ballast = folder / "ballast"
ballast.write_bytes(bytes(12 << 20))  # 24 MB of disk: 12 are left for a file of 16

def piece(at):
    return (at // PIECE).to_bytes(4, "little") * (PIECE // 4)

def download(cache):
    '''Bytes fetched: from where nothing is known on, extent by extent.'''
    fetched = at = 0
    while at < SIZE:
        if (known := cache.find(at)) is not None:
            at = known.end
            continue
        writer = ExtentWriter(cache, at)
        try:
            while at < cache.next_start(writer.position - 1) and cache.find(at) is None:
                writer.write(piece(at))
                at += PIECE
                fetched += PIECE
                if at == SIZE:
                    break
        finally:
            writer.close()
    return fetched

cache = RangeCache(folder / "cache", "m", SIZE)
try:
    download(cache)
except DiskFull as error:
    assert "no room for the model's files under" in str(error), error
    assert error.kind == "disk_full"
else:
    sys.exit("16 MB fit into 12")
cache.close()

again = RangeCache(folder / "cache", "m", SIZE)  # as a stage that is started anew
try:
    download(again)
except DiskFull:
    again.close()
else:
    sys.exit("16 MB fit into 12 now")

ballast.unlink()
last = RangeCache(folder / "cache", "m", SIZE)
fetched = download(last)
assert fetched < SIZE // 2, f"{fetched} of {SIZE} bytes fetched anew: what came was lost"
at = 0
while at < SIZE:
    extent = last.find(at)
    data = last.read(extent, extent.start, extent.end)
    assert data == b"".join(piece(p) for p in range(extent.start, extent.end, PIECE))
    at = extent.end
"""


def test_a_disk_that_fills_up_loses_nothing_that_came(tmp_path: Path) -> None:
    if not shutil.which("unshare"):
        pytest.skip("no unshare here")
    words = ("sh", "-c", MOUNT, "sh", str(tmp_path), sys.executable, DOWNLOAD)
    trial = subprocess.run([*NAMESPACE, "true"], capture_output=True, timeout=30, check=False)
    if trial.returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run([*NAMESPACE, *words], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()

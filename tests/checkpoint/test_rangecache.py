"""The cache of byte ranges: exact, shared, and suspicious of the disk."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_checkpoint import rangecache
from lamella_checkpoint.rangecache import ExtentWriter, RangeCache

SIZE = 5000
WHOLE = bytes((i * 7 + i // 256) % 256 for i in range(SIZE))
RANGES = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(1, 900)).map(
        lambda item: (item[0], min(SIZE, item[0] + item[1]))
    ),
    max_size=12,
)


def put(cache: RangeCache, start: int, end: int) -> None:
    writer = ExtentWriter(cache, start)
    for at in range(start, end, 100):
        writer.write(WHOLE[at : min(end, at + 100)])
    writer.close()


def held(cache: RangeCache) -> set[int]:
    """Positions of all bytes that the cache gives back, each compared."""
    found: set[int] = set()
    position = 0
    while position < SIZE:
        extent = cache.find(position)
        if extent is None:
            position = cache.next_start(position)
            continue
        data = cache.read(extent, position, extent.end)
        if data is None:
            continue
        assert bytes(data) == WHOLE[position : extent.end]
        found.update(range(position, extent.end))
        position = extent.end
    return found


@settings(deadline=None)  # a loaded machine is slow
@given(ranges=RANGES)
def test_what_went_in_comes_out_also_after_a_restart(
    ranges: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = RangeCache(folder, "a/b.safetensors", SIZE)
    for start, end in ranges:
        put(cache, start, end)
    expected = {position for start, end in ranges for position in range(start, end)}
    assert held(cache) == expected
    cache.close()
    again = RangeCache(folder, "a/b.safetensors", SIZE)
    assert held(again) == expected
    again.close()


@settings(deadline=None)  # a loaded machine is slow
@given(ranges=RANGES, where=st.integers(0, SIZE - 1))
def test_a_flipped_byte_loses_its_extent_only(
    ranges: list[tuple[int, int]], where: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = RangeCache(folder, "m", SIZE)
    for start, end in ranges:
        put(cache, start, end)
    cache.close()
    damaged = bytearray((folder / "m.part").read_bytes())
    damaged[where] ^= 0x10
    (folder / "m.part").write_bytes(damaged)
    again = RangeCache(folder, "m", SIZE)
    kept = {p for start, end in ranges if not start <= where < end for p in range(start, end)}
    assert held(again) == kept
    again.close()


def test_long_writes_become_extents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rangecache, "EXTENT_BYTES", 1000)
    cache = RangeCache(tmp_path, "m", SIZE)
    writer = ExtentWriter(cache, 500)
    writer.write(WHOLE[500:3200])
    writer.close()
    lines = (tmp_path / "m.extents").read_text().splitlines()
    assert [tuple(map(int, line.split()[:2])) for line in lines] == [
        (500, 1500),
        (1500, 2500),
        (2500, 3200),
    ]
    assert held(cache) == set(range(500, 3200))
    cache.close()


@pytest.mark.parametrize(
    "junk",
    [b"garbage\n", b"0 10 zz\n", b"10 5 " + b"0" * 64 + b"\n", b"0 99999 " + b"0" * 64 + b"\n"],
    ids=["words", "no hash", "backwards", "beyond the end"],
)
def test_damaged_index_lines_are_passed_over(tmp_path: Path, junk: bytes) -> None:
    cache = RangeCache(tmp_path, "m", SIZE)
    put(cache, 0, 300)
    cache.close()
    index = tmp_path / "m.extents"
    index.write_bytes(junk + index.read_bytes() + b"5 9 00")  # the last line is half written
    again = RangeCache(tmp_path, "m", SIZE)
    assert held(again) == set(range(300))
    again.close()


def test_two_openers_see_each_other(tmp_path: Path) -> None:
    one, two = RangeCache(tmp_path, "m", SIZE), RangeCache(tmp_path, "m", SIZE)
    put(one, 0, 1000)
    put(two, 2000, 2500)
    one.refresh()
    two.refresh()
    assert held(one) == held(two) == {*range(1000), *range(2000, 2500)}
    one.close()
    two.close()


def test_a_claim_without_data_is_not_believed(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, "m", SIZE)
    cache.close()
    claim = f"0 100 {hashlib.sha256(WHOLE[:100]).hexdigest()}\n"
    (tmp_path / "m.extents").write_text(claim)
    again = RangeCache(tmp_path, "m", SIZE)
    assert held(again) == set()
    again.close()


FULL = """
import resource, signal, sys
from pathlib import Path
from lamella_checkpoint.errors import DiskFull
from lamella_checkpoint.rangecache import ExtentWriter, RangeCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    RangeCache(Path(sys.argv[1]), "m", 5000)
except DiskFull as error:
    assert "bytes free, 5000 more wanted" in str(error), error
    sys.exit(7)
"""


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 7, done.stderr.decode()

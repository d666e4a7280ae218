"""Too little memory is said before anything is read, with both numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella_contract.config import StageConfig
from lamella_contract.errors import OutOfMemory
from lamella_worker.process import room

GIB = 1 << 30
Config = Callable[..., StageConfig]


def test_both_numbers_and_the_stage_are_named(config: Config) -> None:
    stage = dataclasses.replace(config(1), device="cuda:0")
    room.check_room(stage, 2 * GIB, 2 * GIB)
    with pytest.raises(OutOfMemory) as raised:
        room.check_room(stage, 3 * GIB, 2 * GIB)
    assert str(raised.value) == (
        "stage 1 (layers 1 to 1) needs 3.0 GiB on cuda:0, 2.0 GiB are free; "
        "give it more memory, more stages, or less context"
    )


@pytest.mark.parametrize(
    ("files", "free"),
    [
        pytest.param({}, 4000 * 1024, id="no-control-group"),
        pytest.param({"max": "max", "current": "9", "stat": ""}, 4000 * 1024, id="no-limit"),
        pytest.param({"max": "3000000", "current": "1000000", "stat": ""}, 2_000_000, id="limit"),
        pytest.param(
            {"max": "3000000", "current": "2900000", "stat": "anon 1\nfile 400000\nfile_mapped 7"},
            500_000,
            id="cached-files-can-go",
        ),
    ],
)
def test_what_a_container_may_still_take(tmp_path: Path, files: dict[str, str], free: int) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    for name, text in files.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert room.host_free_bytes(tmp_path / "meminfo", tmp_path) == free

"""Reading a model from a hub: real HTTP to a small hub on loopback, with every fault scripted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamella_checkpoint.headers import read_headers
from lamella_checkpoint.hub import HubOptions, HubSource
from lamella_checkpoint.slices import SliceReader
from lamella_checkpoint.source import Source, open_source
from lamella_checkpoint.transfer import RetryPolicy
from lamella_contract.errors import (
    AuthRequired,
    CorruptModel,
    DownloadStalled,
    GatedModel,
    HubUnreachable,
    InvalidSpec,
    LamellaError,
    ModelNotFound,
    RateLimited,
)

REPO = "org/tiny"
WEIGHTS = "model.safetensors"


class Naps:
    """Stands for sleep: notes how long, waits not at all."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture
def model(hub: Any, make_model: Any, files_of: Any) -> Path:
    """A tiny model, pushed as ``org/tiny``; its folder."""
    folder: Path = make_model()
    hub.push(REPO, files_of(folder))
    return folder


@pytest.fixture
def opened(hub: Any, tmp_path: Path, naps: Naps) -> Callable[..., HubSource]:
    """Opens ``org/tiny`` with a cache of the test's own and a patience of 0.2 s."""

    def open_it(revision: str = "main", **options: Any) -> HubSource:
        settings: dict[str, Any] = {
            "cache_dir": tmp_path / "cache",
            "hf_cache": tmp_path / "hf",
            "stall_timeout_s": 0.2,
            "sleep": naps,
            "policy": RetryPolicy(tries=3),
            **options,
        }
        return HubSource.open(REPO, revision=revision, options=HubOptions(**settings))

    return open_it


def all_tensors(source: Source) -> dict[str, bytes]:
    reader = SliceReader(source, read_headers(source).values())
    return {name: data.tobytes() for name, data in reader}


def expected_tensors(folder: Path) -> dict[str, bytes]:
    return all_tensors(open_source(str(folder)))


def test_a_model_on_a_hub_reads_like_a_folder(hub: Any, model: Path, tmp_path: Path) -> None:
    source = open_source(f"hf://{REPO}", cache_dir=tmp_path / "cache")
    local = open_source(str(model))
    assert source.list() == local.list()
    assert source.read_text("config.json") == local.read_text("config.json")
    assert all_tensors(source) == expected_tensors(model)
    assert source.uri == f"hf://{REPO}@{source.commit}"
    assert source.commit == hub.refs[REPO, "main"]


def test_only_the_slice_is_fetched(hub: Any, opened: Any, make_model: Any, files_of: Any) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.standard_normal((64, 1024)).astype(np.float32) for i in range(16)}
    hub.push(REPO, files_of(make_model(tensors)))
    source = opened()
    headers = read_headers(source)
    before = source.bytes_fetched
    reader = SliceReader(source, [headers["t3"], headers["t4"], headers["t9"]])
    got = dict(reader)
    assert got["t9"].tobytes() == tensors["t9"].tobytes()
    assert reader.ratio <= 1.01
    # The header's guess had brought some of the first tensors' bytes already.
    assert source.bytes_fetched - before <= reader.bytes_needed * 1.01


def test_a_cut_transfer_goes_on_from_the_byte_reached(
    hub: Any, model: Path, opened: Any, naps: Naps
) -> None:
    source = opened()
    size = source.size(WEIGHTS)
    hub.fault(WEIGHTS, cut=1000)
    hub.fault(WEIGHTS, cut=500)
    data = bytearray(size)
    source.read_into(WEIGHTS, 0, size, memoryview(data))
    assert bytes(data) == (model / WEIGHTS).read_bytes()
    assert [seen.range for seen in hub.gets(WEIGHTS)] == [
        f"bytes=0-{size - 1}",
        f"bytes=1000-{size - 1}",
        f"bytes=1500-{size - 1}",
    ]
    assert source.bytes_fetched == size
    assert source.progress.snapshot().retries == len(naps.seconds) == 2


def test_what_a_broken_transfer_brought_is_kept(hub: Any, model: Path, opened: Any) -> None:
    source = opened()
    size = source.size(WEIGHTS)
    hub.fault(WEIGHTS, cut=1000)
    hub.fault(WEIGHTS, status=503, times=3)
    buffer = memoryview(bytearray(size))
    with pytest.raises(HubUnreachable, match="503"):
        source.read_into(WEIGHTS, 0, size, buffer)
    source.close()
    again = opened()
    again.read_into(WEIGHTS, 0, size, buffer)
    assert bytes(buffer) == (model / WEIGHTS).read_bytes()
    assert again.bytes_fetched == size - 1000


def test_a_stall_is_noticed_and_taken_up_again(hub: Any, model: Path, opened: Any) -> None:
    source = opened()
    size = source.size(WEIGHTS)
    hub.fault(WEIGHTS, stall=700)
    data = bytearray(size)
    source.read_into(WEIGHTS, 0, size, memoryview(data))
    assert hub.stalled.is_set()
    assert bytes(data) == (model / WEIGHTS).read_bytes()
    assert [seen.range for seen in hub.gets(WEIGHTS)][-1] == f"bytes=700-{size - 1}"


def test_stalls_without_end_are_an_error(hub: Any, model: Path, opened: Any) -> None:
    source = opened()
    size = source.size(WEIGHTS)
    hub.fault(WEIGHTS, stall=0, times=3)
    with pytest.raises(DownloadStalled, match=r"no byte came for 0\.2 s"):
        source.read_into(WEIGHTS, 0, size, memoryview(bytearray(size)))


@pytest.mark.parametrize("restarted", [False, True], ids=["one go", "after a restart"])
def test_a_branch_that_moves_mixes_nothing(
    hub: Any, model: Path, opened: Any, files_of: Any, make_model: Any, restarted: bool
) -> None:
    first = expected_tensors(model)
    other = {name: value + 1 for name, value in _arrays(model).items()}
    newer = files_of(make_model(other, name="newer"))
    hub.fault(WEIGHTS, cut=900, before=lambda: hub.push(REPO, newer))
    source = opened()
    commit = source.commit
    if restarted:
        read_headers(source)
        source.close()
        source = opened(commit)
    assert all_tensors(source) == first
    assert hub.refs[REPO, "main"] != commit
    moved = opened()
    assert moved.commit == hub.refs[REPO, "main"]
    assert all_tensors(moved) != first


def _arrays(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors.numpy import load_file

    return load_file(folder / WEIGHTS)


def test_restart_and_offline_mode_need_no_network(
    hub: Any, model: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened()
    expected = all_tensors(source)
    source.close()
    hub.seen.clear()
    pinned = opened(source.commit)
    assert all_tensors(pinned) == expected
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = opened("main")
    assert offline.commit == source.commit
    assert all_tensors(offline) == expected
    assert offline.bytes_fetched == 0
    assert hub.seen == []
    with pytest.raises(HubUnreachable, match=r"config\.json.*not in the cache"):
        offline.read_text("config.json")
    with pytest.raises(HubUnreachable, match="not in the cache"):
        opened("other-branch")


def test_what_huggingface_hub_has_downloaded_is_not_fetched(
    hub: Any, model: Path, opened: Any, tmp_path: Path
) -> None:
    repo = tmp_path / "hf" / "models--org--tiny"
    commit = hub.refs[REPO, "main"]
    for name, text in (("refs/main", commit), (f"snapshots/{commit}/README.md", "hello")):
        (repo / name).parent.mkdir(parents=True)
        (repo / name).write_text(text)
    (repo / "snapshots" / commit / WEIGHTS).symlink_to(model / WEIGHTS)
    online = opened()
    assert all_tensors(online) == expected_tensors(model)
    assert online.bytes_fetched == 0
    assert hub.gets(WEIGHTS) == []
    offline = opened(offline=True, cache_dir=tmp_path / "another")
    assert offline.commit == commit
    assert all_tensors(offline) == expected_tensors(model)


def test_an_unreachable_hub_falls_back_on_the_cached_commit(
    hub: Any, model: Path, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened()
    expected = all_tensors(first)
    hub.fault("/api/models", status=502, times=3)
    with caplog.at_level(logging.WARNING):
        again = opened()
    assert again.commit == first.commit
    assert "using the cached commit" in caplog.text
    assert all_tensors(again) == expected


def test_a_corrupt_cache_is_noticed_and_fetched_again(
    hub: Any, model: Path, opened: Any, tmp_path: Path
) -> None:
    expected = all_tensors(opened())
    (part,) = (tmp_path / "cache").rglob(f"{WEIGHTS}.part")
    damaged = bytearray(part.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    part.write_bytes(damaged)
    with pytest.raises(HubUnreachable, match="not in the cache"):
        all_tensors(opened(offline=True))
    source = opened()
    assert all_tensors(source) == expected
    assert source.bytes_fetched > 0


def test_a_small_file_is_checked_against_its_hash(hub: Any, model: Path, opened: Any) -> None:
    hub.fault("config.json", flip=True)
    source = opened()
    assert source.read_text("config.json") == (model / "config.json").read_text()
    hub.fault("config.json", flip=True, times=9)
    (model / "config.json").unlink()
    source._cache(source._file("config.json")).drop_all()
    with pytest.raises(CorruptModel, match="do not have the hash"):
        source.read_text("config.json")


REFUSALS = [
    pytest.param({"status": 401}, AuthRequired, "wants a token", id="401"),
    pytest.param(
        {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}},
        GatedModel,
        "accept the model's conditions at http",
        id="403 gated",
    ),
    pytest.param({"status": 403}, GatedModel, "refuses access", id="403"),
    pytest.param({"status": 404}, ModelNotFound, "no such", id="404"),
    pytest.param({"status": 500, "times": 3}, HubUnreachable, "answered 500", id="500"),
    pytest.param({"status": 503, "times": 3}, HubUnreachable, "answered 503", id="503"),
    pytest.param(
        {"status": 429, "headers": {"Retry-After": "3"}, "times": 3},
        RateLimited,
        "slow down",
        id="429 again and again",
    ),
    pytest.param(
        {"status": 429, "headers": {"Retry-After": "3600"}},
        RateLimited,
        "slow down",
        id="429 for an hour",
    ),
]


@pytest.mark.parametrize("where", ["/api/models", WEIGHTS])
@pytest.mark.parametrize(("fault", "kind", "says"), REFUSALS)
def test_refusals_are_typed_and_say_what_to_do(
    hub: Any, model: Path, opened: Any, where: str, fault: dict[str, Any], kind: type, says: str
) -> None:
    hub.fault(where, **fault)
    with pytest.raises(kind, match=says):
        read_headers(opened())


@pytest.mark.parametrize("where", ["/api/models", WEIGHTS])
def test_retry_after_is_obeyed(hub: Any, model: Path, opened: Any, naps: Naps, where: str) -> None:
    hub.fault(where, status=429, headers={"Retry-After": "7"})
    hub.fault(where, status=429, headers={"RateLimit": '"resolvers";r=0;t=11'})
    assert all_tensors(opened()) == expected_tensors(model)
    assert naps.seconds == [7.0, 11.0]


@pytest.mark.parametrize(
    ("repo", "revision", "says"),
    [("org/none", "main", "no such model or revision"), (REPO, "v9", "no such revision")],
    ids=["repository", "revision"],
)
def test_what_is_not_there(
    hub: Any, model: Path, tmp_path: Path, repo: str, revision: str, says: str
) -> None:
    with pytest.raises(ModelNotFound, match=says):
        open_source(f"hf://{repo}@{revision}", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"headers": {"X-Repo-Commit": "0" * 40}}, "commit 0000"),
        ({"headers": {"ETag": '"other"'}}, "ETag"),
        ({"headers": {"Content-Range": "bytes 5-9/100"}}, "bytes 5-9/100"),
        ({"whole": True}, "whole file"),
    ],
    ids=["commit", "etag", "range", "no ranges"],
)
def test_answers_to_another_question_are_refused(
    hub: Any, model: Path, opened: Any, fault: dict[str, Any], says: str
) -> None:
    source = opened()
    hub.fault(WEIGHTS, times=3, **fault)
    with pytest.raises(CorruptModel, match=says):
        source.read_into(WEIGHTS, 8, 50, memoryview(bytearray(42)))
    source.read_into(WEIGHTS, 8, 50, memoryview(bytearray(42)))


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Any, model: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.redirects = True
    source = opened()
    for start in (0, 8):
        source.read_into(WEIGHTS, start, start + 8, memoryview(bytearray(8)))
    to_hub = [seen.token for seen in hub.seen if not seen.path.startswith("/cdn")]
    assert set(to_hub) == {"Bearer hf_secret"}
    elsewhere = [seen.token for seen in hub.seen if seen.path.startswith("/cdn")]
    assert elsewhere == [None, None]


def test_a_signed_address_that_ran_out_is_asked_for_anew(
    hub: Any, model: Path, opened: Any
) -> None:
    hub.redirects = True
    source = opened()
    source.read_into(WEIGHTS, 0, 8, memoryview(bytearray(8)))
    hub.fault("/cdn", status=403)
    source.read_into(WEIGHTS, 8, 16, memoryview(bytearray(8)))
    assert [seen.path.startswith("/cdn") for seen in hub.gets(WEIGHTS)] == [
        *(False, True),  # first range: the hub, then the storage
        *(True, False, True),  # second: the storage refuses, the hub signs anew
    ]


def test_no_hub_at_all(tmp_path: Path, naps: Naps, hub: Any) -> None:
    options = HubOptions(
        tmp_path, endpoint="http://127.0.0.1:9", sleep=naps, policy=RetryPolicy(tries=2)
    )
    with pytest.raises(HubUnreachable, match="check the network and HF_ENDPOINT"):
        HubSource.open(REPO, revision="main", options=options)
    assert len(naps.seconds) == 1


@pytest.mark.parametrize(
    "uri", ["hf://", "hf://a/b/c", "hf://../x", "hf://a b/c", "s3://bucket/model", ""]
)
def test_bad_uris(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"model\.uri"):
        open_source(uri, cache_dir=tmp_path)


def test_a_hub_that_names_files_outside_is_refused(hub: Any, opened: Any) -> None:
    hub.push(REPO, {"../../evil.json": b"{}"})
    with pytest.raises(CorruptModel, match="leads out of the model"):
        opened()


def test_metadata_folder_holds_the_small_files_only(
    hub: Any, model: Path, opened: Any, files_of: Any
) -> None:
    files = {**files_of(model), "tokenizer.json": b"{}", "notes.md": b"#", "a/b.json": b"{}"}
    hub.push(REPO, files)
    folder = opened().metadata_folder()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]
    hub.seen.clear()
    assert opened(hub.refs[REPO, "main"]).metadata_folder() == folder
    assert hub.seen == []


def test_two_processes_share_what_each_brought(hub: Any, model: Path, opened: Any) -> None:
    one, two = opened(), opened()
    headers = read_headers(one)
    names = sorted(headers)
    list(SliceReader(one, [headers[name] for name in names[::2]]))
    list(SliceReader(two, [headers[name] for name in names]))
    assert one.bytes_fetched + two.bytes_fetched <= one.size(WEIGHTS)


def test_many_threads_read_one_source(hub: Any, model: Path, opened: Any) -> None:
    source = opened()
    whole = (model / WEIGHTS).read_bytes()
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(10):
            start, end = sorted(int(x) for x in rng.integers(0, len(whole), 2))
            data = bytearray(end - start)
            try:
                source.read_into(WEIGHTS, start, end, memoryview(data))
            except LamellaError as error:
                wrong.append(error)
            if bytes(data) != whole[start:end]:
                wrong.append((start, end))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

"""Where a gateway's tokenizer comes from, and how long it is waited for."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_lab import Lab

from lamella_contract.errors import (
    AuthRequired,
    DownloadStalled,
    HubUnreachable,
    InvalidConfig,
    LamellaError,
    ModelNotFound,
    RateLimited,
)
from lamella_gateway.codec import LONGEST_PAUSE_S, CodecLoader, tokenizer_folder
from lamella_gateway.text import TextCodec

REPO = "org/toy"


def _hub_fixture() -> Any:
    """The small hub on loopback that the checkpoint package is tested against."""
    path = Path(__file__).parents[1] / "checkpoint" / "conftest.py"
    spec = importlib.util.spec_from_file_location("gateway_tests_small_hub", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.hub


hub = _hub_fixture()


def loaded(lab: Lab, *failures: LamellaError) -> tuple[TextCodec, list[float], list[str]]:
    """The codec after ``failures``, the pauses made, and the reasons given meanwhile."""
    left, pauses, reasons = list(failures), [], []

    def folder(config: object) -> str:
        if left:
            raise left.pop(0)
        return str(lab.tokenizer_dir)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        reasons.append(loader.reason)

    loader = CodecLoader(lab.config(), folder=folder, pause=pause)
    return asyncio.run(loader.load()), pauses, reasons


@pytest.mark.parametrize("failure", [HubUnreachable, DownloadStalled, RateLimited])
def test_what_may_pass_is_waited_for(lab: Lab, failure: type[LamellaError]) -> None:
    codec, pauses, reasons = loaded(lab, *(failure("the hub is away") for _ in range(10)))
    assert codec.has_chat_template
    assert reasons == ["the tokenizer cannot be fetched: the hub is away"] * 10
    assert 0.5 <= pauses[0] <= 1.0
    assert max(pauses) <= LONGEST_PAUSE_S
    assert pauses[-1] >= LONGEST_PAUSE_S / 2


@pytest.mark.parametrize("failure", [AuthRequired, ModelNotFound, InvalidConfig])
def test_what_does_not_pass_is_raised(lab: Lab, failure: type[LamellaError]) -> None:
    with pytest.raises(failure, match="no"):
        loaded(lab, failure("no"))


def test_the_files_come_from_the_hub_with_the_token(hub: Any, lab: Lab) -> None:
    files = {path.name: path.read_bytes() for path in lab.tokenizer_dir.iterdir()}
    hub.push(REPO, files | {"model.safetensors": b"not wanted here", "config.json": b"{}"})
    token = lab.tmp / "token"
    config = lab.config(
        tokenizer_path="",
        model_uri=f"hf://{REPO}@{hub.refs[REPO, 'main']}",
        cache_dir=str(lab.tmp / "cache"),
        hub_token_file=str(token),
    )
    with pytest.raises(InvalidConfig, match="hub_token_file: cannot read"):
        tokenizer_folder(config)
    token.write_text("hf_secret\n")
    folder = Path(tokenizer_folder(config))
    assert folder.is_relative_to(lab.tmp / "cache")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files | {
        "config.json": b"{}"
    }
    assert {seen.token for seen in hub.seen} == {"Bearer hf_secret"}
    assert not hub.gets("model.safetensors")
    asked = len(hub.seen)
    assert tokenizer_folder(config) == str(folder)  # a commit that is cached asks nobody
    assert len(hub.seen) == asked


@pytest.mark.parametrize("scheme", ["file:", ""])
def test_a_folder_is_read_where_it_is(lab: Lab, scheme: str) -> None:
    uri = f"{scheme}{lab.tokenizer_dir}"
    config = lab.config(tokenizer_path="", model_uri=uri)
    assert tokenizer_folder(config) == str(lab.tokenizer_dir)


def test_a_hub_that_is_away_keeps_the_gateway_unready(
    hub: Any, lab: Lab, eventually: Callable[..., None]
) -> None:
    config: dict[str, Any] = {
        "tokenizer_path": "",
        "model_uri": f"hf://{REPO}@{'c' * 40}",
        "cache_dir": str(lab.tmp / "cache"),
    }
    hub.fault("/api/models/org/toy", status=418, times=1)
    served = lab.serve(lab.twin(), wait=False, loaded=False, **config)
    eventually(lambda: "answered 418" in served.call(served.gateway.not_accepting_reason))
    assert not served.call(served.gateway.codec.done)

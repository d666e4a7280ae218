"""The inspector as a pod runs it: a message with a profile, or with what is to be mended."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from cryptography import x509

from lamella_checkpoint.hub import HubOptions, HubSource
from lamella_checkpoint.inspector import inspect
from lamella_checkpoint.source import open_source
from lamella_contract import profile_message
from lamella_contract.errors import HubUnreachable
from lamella_contract.profile import ModelProfile
from lamella_contract.profile_message import Failure

REPO = "org/tiny"
TOKEN = "hf_a-secret-of-this-test"


class Asker:
    """Runs the command and reads its message."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.message = tmp / "termination-log"
        self.message.touch()
        self.token_file = tmp / "token"
        self.token_file.write_text(f"{TOKEN}\n")
        self.said = ""

    def command(self, *arguments: str) -> list[str]:
        module = [sys.executable, "-m", "lamella_checkpoint", "inspect"]
        return [*module, *arguments, "--message-file", str(self.message)]

    def run(self, uri: str, *arguments: str, **environment: str) -> ModelProfile | Failure:
        done = subprocess.run(
            self.command("--uri", uri, "--cache-dir", str(self.tmp / "cache"), *arguments),
            env={**os.environ, "HOME": str(self.tmp), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.said = done.stdout + done.stderr
        text = self.message.read_text()
        assert len(text.encode()) <= 4096
        assert TOKEN not in self.said + text
        found = profile_message.read(text)
        assert done.returncode == (0 if isinstance(found, ModelProfile) else 1), self.said
        return found

    def failure(self, *arguments: str, **environment: str) -> Failure:
        found = self.run(*arguments, **environment)
        assert isinstance(found, Failure), found
        assert found.message in self.said
        assert "Traceback" not in self.said
        return found


@pytest.fixture
def asker(tmp_path: Path) -> Asker:
    return Asker(tmp_path)


@pytest.fixture
def model(hub: Any, make_model: Any, files_of: Any) -> Path:
    folder: Path = make_model()
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    hub.push(REPO, files_of(folder))
    return folder


def test_a_model_on_a_hub(hub: Any, model: Path, asker: Asker) -> None:
    found = asker.run(f"hf://{REPO}", "--dtype", "bfloat16", "--token-file", str(asker.token_file))
    assert isinstance(found, ModelProfile)
    assert found.commit == hub.refs[REPO, "main"]
    assert found.eos_token_ids == (1, 2)
    assert found.dtype == "bfloat16"
    assert all("/org/tiny/" in seen.path for seen in hub.seen)  # the hub is asked nothing else
    assert [path.name for path in asker.tmp.iterdir() if path.name.startswith(".")] == []
    assert "httpx" not in asker.said
    assert {seen.token for seen in hub.seen} == {f"Bearer {TOKEN}"}
    pinned = asker.run(f"hf://{REPO}", "--revision", found.commit, "--dtype", "bfloat16")
    assert pinned == found


@pytest.mark.parametrize("scheme", ["file:", ""], ids=["file", "path"])
def test_a_model_in_a_folder(model: Path, asker: Asker, scheme: str) -> None:
    assert asker.run(f"{scheme}{model}") == inspect(open_source(f"{scheme}{model}"))


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        pytest.param({"status": 401}, "auth_required", "wants a token (401)", id="401"),
        pytest.param({"status": 403}, "gated_model", "accept the model's conditions", id="403"),
        pytest.param({"status": 404}, "model_not_found", "no such model or revision", id="404"),
        pytest.param(
            {"status": 429, "headers": {"Retry-After": "900"}},
            "rate_limited",
            "asks to slow down (429)",
            id="429",
        ),
        pytest.param({"status": 418}, "hub_unreachable", "answered 418", id="odd"),
    ],
)
def test_what_a_hub_answers(
    hub: Any, model: Path, asker: Asker, fault: dict[str, Any], kind: str, says: str
) -> None:
    hub.fault("/api/models/org/tiny/revision/main", times=9, **fault)
    failure = asker.failure(f"hf://{REPO}")
    assert failure.kind == kind
    assert says in failure.message


def test_what_is_no_model(model: Path, asker: Asker) -> None:
    config = model / "config.json"
    good = config.read_text()
    config.write_text(good.replace('"llama"', '"alien"'))
    assert asker.failure(f"file:{model}").kind == "unsupported_family"
    config.write_text(good[:-3])
    assert asker.failure(f"file:{model}").kind == "corrupt_model"
    assert asker.failure("file:/nowhere").kind == "model_not_found"
    assert asker.failure("s3://bucket/model").kind == "invalid_spec"
    assert asker.failure(f"file:{model}", "--token-file", "/nowhere").kind == "invalid_config"


def unreachable(tmp_path: Path) -> str:
    """What is said of ``https://hub.invalid``, with all tries and no waiting between them."""
    options = HubOptions(
        cache_dir=tmp_path, hf_cache=tmp_path, endpoint="https://hub.invalid", sleep=lambda _: None
    )
    huggingface_hub.close_session()  # it keeps the proxy that it was made with
    with pytest.raises(HubUnreachable) as raised:
        HubSource.open(REPO, revision="main", options=options)
    huggingface_hub.close_session()
    return str(raised.value)


def test_a_name_that_nobody_knows(hub: Any, tmp_path: Path) -> None:
    assert "the name hub.invalid cannot be looked up" in unreachable(tmp_path)


@pytest.fixture
def tls_hub(hub: Any, model: Path, tmp_path: Path, authority: Any) -> Iterator[tuple[str, Path]]:
    """The hub behind TLS, and the file with the certificate that vouches for it."""
    certificate, key = authority
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = hub._server.RequestHandlerClass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", certificate
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    import datetime
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a hub of these tests")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("authority")
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "ca.crt", folder / "key.pem"


def test_a_private_authority(asker: Asker, tls_hub: tuple[str, Path]) -> None:
    endpoint, certificate = tls_hub
    began_s = time.monotonic()
    failure = asker.failure(f"hf://{REPO}", HF_ENDPOINT=endpoint)
    assert time.monotonic() - began_s < 20  # no try would change it
    assert failure.kind == "hub_unreachable"
    assert "is not trusted" in failure.message
    assert "SSL_CERT_FILE" in failure.message
    failure = asker.failure(f"hf://{REPO}", HF_ENDPOINT=endpoint, SSL_CERT_FILE="/nowhere/ca.crt")
    assert "SSL_CERT_FILE cannot be read" in failure.message
    found = asker.run(f"hf://{REPO}", HF_ENDPOINT=endpoint, SSL_CERT_FILE=str(certificate))
    assert isinstance(found, ModelProfile)


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_CONNECT(self) -> None:
        self.send_error(407)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[str]:
    """A proxy that wants a password other than the one it is given."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_proxy_that_refuses(
    hub: Any, tmp_path: Path, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{TOKEN}@{proxy}")
    said = unreachable(tmp_path)
    assert f"the proxy {proxy} does not connect to https://hub.invalid" in said
    assert "407" in said
    assert TOKEN not in said


def test_a_proxy_that_is_not_there(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert "the proxy 127.0.0.1:9 does not connect" in unreachable(tmp_path)


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_deadline_ends_it_with_a_message(asker: Asker, silent_hub: str) -> None:
    failure = asker.failure(f"hf://{REPO}", "--deadline", "1.5", HF_ENDPOINT=silent_hub)
    assert failure.kind == "hub_unreachable"
    assert "not inspected within 1.5 s" in failure.message


def test_a_message_that_cannot_be_left(model: Path, asker: Asker) -> None:
    asker.message = asker.tmp / "nowhere" / "log"
    command = asker.command("--uri", f"file:{model}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "--message-file: cannot write" in done.stderr


def test_it_ends_when_asked_to(
    asker: Asker, silent_hub: str, make_model: Callable[..., Path]
) -> None:
    popen = subprocess.Popen(
        asker.command("--uri", f"hf://{REPO}"),
        env={**os.environ, "HF_ENDPOINT": silent_hub, "HOME": str(asker.tmp)},
        stderr=subprocess.DEVNULL,
    )
    try:
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(20) in (1, -signal.SIGTERM)
    finally:
        popen.kill()
        popen.wait()

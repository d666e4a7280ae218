"""What this machine has: cores, free memory, GPUs, free ports, room on the disk.

Knows nothing of models. Facts are taken once into a frozen value, so `launch` stays pure.
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lamella.errors import NoSpace, PortInUse, UsageError
from lamella_contract import names

_PORTS = range(20_000, 30_000)
"""Below Linux's ephemeral range (32768 and up): no outgoing connection takes one of these between
the choice and the bind, nor while a crashed stage is being started again."""


@dataclass(frozen=True, slots=True)
class Machine:
    """`cores`: the CPU numbers this process may use. `free_bytes`: memory that can be taken without
    swapping.

    `gpu_free_bytes`: one number per CUDA device, empty without any.
    """

    cores: tuple[int, ...]
    free_bytes: int
    gpu_free_bytes: tuple[int, ...] = ()


def look() -> Machine:
    """The facts of this machine, now. A memory limit of the container counts."""
    return Machine(tuple(sorted(os.sched_getaffinity(0))), _free_bytes(), _gpu_free_bytes())


def device_for(machine: Machine, quantization: str) -> str:
    """Where stages run when nobody said: a GPU where there is one, unless it lacks the products."""
    return "cuda" if machine.gpu_free_bytes and quantization == "none" else "cpu"


def cache_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Where converted and downloaded models are kept: LAMELLA_HOME, or the user's cache
    directory."""
    if home := environment.get(names.ENV_HOME, ""):
        return Path(home)
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "lamella"


def free_ports(count: int) -> tuple[int, ...]:
    """`count` loopback TCP ports on which nothing listens at this moment."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(found) == count:
                break
            try:
                held.enter_context(_bound(names.LOOPBACK, port))
            except OSError:
                continue
            found.append(port)
    if len(found) < count:
        raise UsageError(f"ports: got {len(found)} free ones in {_PORTS}, want {count}")
    return tuple(found)


def require_port(host: str, port: int) -> None:
    """Raises PortInUse when another process listens on host:port, UsageError when we may not."""
    try:
        with _bound(host, port):
            return
    except PermissionError as error:
        raise UsageError(
            f"--port: got {port}, want one this user may open (1024 or more)"
        ) from error
    except socket.gaierror as error:
        raise UsageError(f"--host: got {host!r}, want an address of this machine") from error
    except OSError as error:
        raise PortInUse(
            f"--port: {host}:{port} is taken by another process ({error.strerror}); "
            "end it or choose another with --port"
        ) from error


def require_space(directory: Path, wanted_bytes: int, what: str) -> None:
    """Raises NoSpace when the file system of `directory` (made if missing) has less than
    wanted_bytes free."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{directory}: cannot be made ({error.strerror}); set LAMELLA_HOME"
        ) from error
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < wanted_bytes:
        raise NoSpace(
            f"{directory}: {free_bytes / 1e9:.1f} GB free, {what} wants "
            f"{wanted_bytes / 1e9:.1f} GB; free some or set LAMELLA_HOME to another disk"
        )


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[None]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, or a port whose last connection closed a moment ago would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)
        yield


def _free_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return min(available * 1024, _container_free_bytes())


def _container_free_bytes() -> int:
    """What the control group leaves (version 2, else 1); a huge number when nothing limits."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            limit_text = Path(limit).read_text(encoding="ascii").strip()
            used_text = Path(used).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit_text == "max":
            break
        return max(int(limit_text) - int(used_text) + _reclaimable_bytes(limit), 0)
    return 1 << 62


def _reclaimable_bytes(limit_file: str) -> int:
    """Page cache that the control group counts as used and gives back when asked."""
    keys = {"inactive_file", "total_inactive_file"}
    with contextlib.suppress(OSError, ValueError):
        lines = (Path(limit_file).parent / "memory.stat").read_text(encoding="ascii").splitlines()
        return max(int(value) for key, value in (line.split() for line in lines) if key in keys)
    return 0


def _gpu_free_bytes() -> tuple[int, ...]:
    if not Path("/dev/nvidiactl").exists() or not (tool := shutil.which("nvidia-smi")):
        return ()
    query = [tool, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return tuple(int(line) * 1024 * 1024 for line in answer.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()

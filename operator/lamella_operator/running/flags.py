"""The operator's settings from flags and environment; what is not known is refused.

``--worker-image=...`` or ``LAMELLA_OPERATOR_WORKER_IMAGE``; the flag wins. Lists are separated by
commas, bytes may be quantities (``2Gi``), ``--proxy=HTTP_PROXY=http://...`` stands once per
variable (in the environment they are separated by semicolons). Knows no cluster.
"""

from __future__ import annotations

import dataclasses
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamella_contract import names
from lamella_contract.errors import InvalidConfig, InvalidSpec, shown
from lamella_contract.forms import did_you_mean
from lamella_contract.units import quantity
from lamella_operator.settings import Settings

ENV_PREFIX = "LAMELLA_OPERATOR_"
PROXY = "proxy"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True, slots=True)
class Process:
    """What concerns this process only; models look the same with any of it."""

    kubeconfig: str = ""
    """Path of a kubeconfig; "" is the ServiceAccount's files, or KUBECONFIG outside a pod."""

    port: int = names.PORT_OPERATOR
    """Where /healthz, /readyz and /metrics are; 0 takes a free one."""

    workers: int = 8
    """Models that are reconciled at the same time."""

    identity: str = ""
    """This process's name in the Lease; "" is the pod's name and a random part."""

    lease: str = "lamella-operator"
    """Name of the Lease in the operator's namespace; another install needs another one."""


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[Settings, Process]:
    """Raises `InvalidConfig` with the flag or variable that is wrong."""
    given: dict[str, list[tuple[str, str]]] = {}
    for variable, text in environ.items():
        if variable.startswith(ENV_PREFIX) and text:
            name = variable.removeprefix(ENV_PREFIX).lower()
            several = text.split(";") if name == PROXY else [text]
            given[_known(name, variable)] = [(variable, one) for one in several]
    flags: dict[str, list[tuple[str, str]]] = {}
    for argument in arguments:
        flag, equals, text = argument.partition("=")
        if not flag.startswith("--") or not equals:
            raise InvalidConfig(f"{argument}: want --name=value")
        name = flag[2:].replace("-", "_")
        flags.setdefault(_known(name, flag), []).append((flag, text))
    for name, texts in flags.items():
        if len(texts) > 1 and name != PROXY:
            raise InvalidConfig(f"{texts[0][0]}: stands {len(texts)} times, want once")
    given |= flags
    settings = _made(Settings, given)
    process = _made(Process, given)
    if not process.identity:
        who = environ.get(names.ENV_POD_NAME) or socket.gethostname()
        process = dataclasses.replace(process, identity=f"{who}_{secrets.token_hex(4)}")
    return settings, process


def _known(name: str, as_given: str) -> str:
    known = [field.name for cls in (Settings, Process) for field in dataclasses.fields(cls)]
    if name not in known:
        raise InvalidConfig(f"{as_given}: unknown{did_you_mean(name, known)}")
    return name


def _made(cls: Any, given: Mapping[str, Sequence[tuple[str, str]]]) -> Any:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name in given:
            values[field.name] = _value(str(field.type), field.name, given[field.name])
        elif field.default is dataclasses.MISSING:
            raise InvalidConfig(f"--{field.name.replace('_', '-')}: missing")
    return cls(**values)


def _value(kind: str, name: str, texts: Sequence[tuple[str, str]]) -> object:
    where, text = texts[-1]
    if name == PROXY:
        return tuple(_proxy(*one) for one in texts if one[1])
    if kind.startswith("tuple"):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind == "bool":
        if text not in ("true", "false"):
            raise InvalidConfig(f"{where}: got {shown(text)}, want true or false")
        return text == "true"
    if kind == "float":
        return _number(where, text)
    if kind == "int":
        try:
            return quantity(text, where)
        except InvalidSpec as error:
            raise InvalidConfig(str(error)) from error
    return text


def _number(where: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise InvalidConfig(f"{where}: got {shown(text)}, want seconds above 0")
    return number


def _proxy(where: str, text: str) -> tuple[str, str]:
    variable, equals, value = text.partition("=")
    if variable not in PROXIES or not equals:
        raise InvalidConfig(
            f"{where}: got {shown(text)}, want one of {', '.join(PROXIES)}, = , URL"
        )
    return variable, value

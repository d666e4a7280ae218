"""Configurations as environment values in which Kubernetes fills in what only a pod knows.

Knows two facts of Kubernetes: ``$(NAME)`` in a value becomes an earlier variable's value, and
``$$`` becomes ``$``. So the pods of one stage are the same manifest in every replica.
"""

from __future__ import annotations

from lamella_contract import names
from lamella_contract.config import GatewayConfig, StageConfig

POD_IP = f"$({names.ENV_POD_IP})"
POD_NAME = f"$({names.ENV_POD_NAME})"
REPLICA = f"$({names.ENV_REPLICA})"

_REFERENCES = (POD_IP, POD_NAME, REPLICA)
_REPLICA_OF_NONE = '"replica":0'


def literal(text: str) -> str:
    """``text`` as a value in which nothing is filled in."""
    return text.replace("$", "$$")


def stage_value(config: StageConfig) -> str:
    """JSON of a stage's configuration, written for replica 0, for whichever replica a pod is of."""
    text = _references(config.to_json())
    assert text.count(_REPLICA_OF_NONE) == 1, "quotes within strings are escaped in JSON"
    return text.replace(_REPLICA_OF_NONE, f'"replica":{REPLICA}')


def gateway_value(config: GatewayConfig) -> str:
    """JSON of a gateway's configuration; its ``instance`` is to be `POD_NAME`."""
    return _references(config.to_json())


def _references(text: str) -> str:
    """A dollar that is not one of our references stays a dollar."""
    text = literal(text)
    for reference in _REFERENCES:
        text = text.replace(literal(reference), reference)
    return text

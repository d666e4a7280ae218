"""Errors that only the command line raises; each is one sentence that says what to do.

They hang under `lamella_contract.errors.LamellaError`, so `__main__` prints all alike.

::

    LamellaError
    ├── UsageError        an option or argument is wrong, or something on this machine is missing
    │   ├── PortInUse     another process listens there
    │   └── NoSpace       the disk is too full for what is to be written
    ├── ChildFailed       a worker or gateway process could not start
    ├── StageFailed       a stage says that it cannot load its slice
    └── EndpointError     an endpoint gave no answer, or refused
"""

from typing import ClassVar

from lamella_contract.errors import LamellaError


class UsageError(LamellaError):
    """An option is wrong or something is missing: field, what was got, what was wanted."""

    kind: ClassVar[str] = "usage"


class PortInUse(UsageError):
    """Another process listens on the port; choose another or end that one."""

    kind: ClassVar[str] = "port_in_use"


class NoSpace(UsageError):
    """The disk is too full; free some or point LAMELLA_HOME elsewhere."""

    kind: ClassVar[str] = "no_space"


class ChildFailed(LamellaError):
    """A child process ended before the pipeline was ever ready; its last lines say why."""

    kind: ClassVar[str] = "child_failed"

    def __init__(self, *, name: str, code: int, lines: tuple[str, ...]) -> None:
        self.name, self.code, self.lines = name, code, lines
        said = [line for line in lines if line.strip()]
        super().__init__(
            f"{name} ended with code {code}: {said[-1] if said else 'it said nothing'}"
        )


class StageFailed(LamellaError):
    """A stage reports that it failed while loading."""

    kind: ClassVar[str] = "stage_failed"


class EndpointError(LamellaError):
    """The endpoint did not answer, or answered with an error."""

    kind: ClassVar[str] = "endpoint"

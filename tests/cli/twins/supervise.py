"""Runs a Supervisor over the commands in argv[1] (JSON list of [name, argv]); prints what it sees,
a line each.

line NAME TEXT | failed NAME CODE | stopped
"""

import json
import sys

from lamella.children import ChildSpec
from lamella.errors import ChildFailed
from lamella.local import Supervisor


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201


def main() -> int:
    ready_at_once = sys.argv[2] == "ready"
    try:
        with Supervisor(on_line=lambda name, line: say("line", name, line)) as supervisor:
            supervisor.run_dir.write("secret", "x")
            supervisor.ready = ready_at_once
            for name, argv in json.loads(sys.argv[1]):
                supervisor.start(ChildSpec(name, tuple(argv)))
            supervisor.run(lambda: None)
    except ChildFailed as error:
        say("failed", error.name, error.code)
        return 1
    say("stopped")
    return 0


sys.exit(main())

"""Runs a Supervisor over the commands in argv[1] (JSON list of [name, argv]); prints what it sees,
a line each. argv[2] is `starting`, `ready`, or `reloads`: then it is ready, and SIGHUP is a word.

line NAME TEXT | failed NAME CODE | reload | stopped
"""

import json
import sys

from lamella.children import ChildSpec
from lamella.errors import ChildFailed
from lamella.local import Supervisor


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201


def main() -> int:
    reloads = sys.argv[2] == "reloads"
    try:
        with Supervisor(
            on_line=lambda name, line: say("line", name, line), reloads=reloads
        ) as supervisor:
            supervisor.run_dir.write("secret", "x")
            supervisor.ready = sys.argv[2] != "starting"
            for name, argv in json.loads(sys.argv[1]):
                supervisor.start(ChildSpec(name, tuple(argv)))
            supervisor.run(lambda: say("reload") if supervisor.take_reload() else None)
    except ChildFailed as error:
        say("failed", error.name, error.code)
        return 1
    say("stopped")
    return 0


sys.exit(main())

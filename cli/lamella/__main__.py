"""The `lamella` command, also `python -m lamella`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (an old Python reaches this line, whatever pip promised)
    sys.exit(f"lamella: got Python {sys.version.split()[0]}, want 3.11 or newer")


def main() -> None:
    """Runs the command line and exits: 0 done, 1 not ready, 2 wrong input or something missing."""
    from lamella import app

    sys.exit(app.run(sys.argv[1:]))


if __name__ == "__main__":
    main()

"""The command line: `seqlora train | adopt | sample | compose | report | info | export | demo`, and the care of libraries."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from ..errors import SeqLoRAError
from . import adopt, demo, export, library, report, sample, train

COMMANDS = (train, adopt, sample, report, library, export, demo)  # in the order of `seqlora --help`


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="seqlora", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        return sub

    for module in COMMANDS:
        module.add_commands(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (SeqLoRAError, OSError) as error:
        print(f"seqlora: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\nseqlora: cancelled; the library is as it was{''.join(stop.args)}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

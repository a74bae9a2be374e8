"""Fetch what is published ahead of time, for nodes without network.

python util/download.py lpd_l_256 llamagen res256_steps20_repulsion2
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hub.download import DEFAULT_ACCESS, commit_of, find_cached
from hub.published import PUBLISHED, download, parse, published_names
from util.cli import Parser, add_flags
from util.errors import UserError, blame, run


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        description="Fetch what is published, for nodes without network: the commands find it in "
        "the cache, where HF_HOME names the same folder."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of --list, or NAME@REVISION")
    parser.add_argument("--all", action="store_true", help="fetch everything")
    parser.add_argument("--list", action="store_true", help="print the names, fetch nothing")
    newest = "take the newest commit, where the cache has an older one; else it stays at that"
    parser.add_argument("--update", action="store_true", help=newest)
    add_flags(parser, "--debug")
    args = parser.parse_args(argv)
    given = args.list + args.all + bool(args.names)
    if given != 1:
        found = "more than one of them" if given else "nothing to do"
        raise UserError(f"NAME: found {found}, expected names, --all or --list")
    if args.list:
        for name, entry in PUBLISHED.items():
            cached = find_cached(entry.repository, entry.choose)
            state = f"commit {commit_of(cached[0])}" if cached else "not here"
            sys.stdout.write(f"{name:26} {entry.kind:10} {entry.repository:27} {state}\n")
        return
    names = published_names() if args.all else args.names
    with blame("NAME"):
        for name in names:  # a mistyped last one should not be found after hours
            parse(name)
        for name in names:
            path = download(name, replace(DEFAULT_ACCESS, renew=args.update))
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    run(main)

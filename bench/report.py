"""Write what a run of the benchmarks found into the documents, so that no figure is typed by hand.

The result is kept as docs/benchmarks.json; from it the sections of figures in docs/benchmarks.md
and README.md are written. With --check nothing is written: the documents have to be what the kept
result makes of them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from _documents import written
from _peers import PEERS
from _results import Suite
from _servers import ROOT
from run import LATEST

KEPT: Final = ROOT / "docs" / "benchmarks.json"
DOCUMENTS: Final = (ROOT / "docs" / "benchmarks.md", ROOT / "README.md")


def read(path: Path) -> Suite:
    """Return the result in a file; raises ValidationError if it is none."""
    return msgspec.json.decode(path.read_bytes(), type=Suite)


def differing(suite: Suite, documents: Sequence[Path]) -> dict[Path, str]:
    """Return how those documents should read that do not read as the result makes them."""
    titles = {peer.name: peer.title for peer in PEERS}
    found = {}
    for path in documents:
        text = path.read_text(encoding="utf-8")
        if (anew := written(text, suite, titles)) != text:
            found[path] = anew
    return found


def main(args: Sequence[str] | None = None) -> int:
    """Write the documents, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "result", type=Path, nargs="?", metavar="FILE", help=f"of a run ({LATEST})", default=LATEST
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    options = parser.parse_args(args)
    if options.check:
        stale = differing(read(KEPT), DOCUMENTS)
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what {KEPT.relative_to(ROOT)} makes of it")
        return 1 if stale else 0
    try:
        suite = read(options.result)
    except (OSError, msgspec.ValidationError, msgspec.DecodeError) as error:
        print(f"{options.result} is no result of bench/run.py: {error}", file=sys.stderr)
        return 1
    try:
        found = differing(suite, DOCUMENTS)
    except KeyError as error:
        print(f"the result lacks the case {error}: nothing is written", file=sys.stderr)
        return 1
    KEPT.write_bytes(msgspec.json.format(msgspec.json.encode(suite)) + b"\n")
    for path, text in found.items():
        path.write_text(text, encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

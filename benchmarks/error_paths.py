"""Which error paths do the tests take? Counts every `raise` and every `except` of the packages.

    make coverage

runs the tests under coverage and then this. Lines alone would flatter: most of a program is the way without errors. What runs only in
processes that the tests start (`smp_plugin.baselines`) counts as not taken.
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

from machine import machine


def error_paths(source: str) -> list[tuple[int, int, str]]:
    """Of each error path in a module, its line, the first line that runs when it is taken, and its text."""
    lines, found = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Raise, ast.ExceptHandler)):
            first = node.lineno if isinstance(node, ast.Raise) else node.body[0].lineno
            found.append((node.lineno, first, lines[node.lineno - 1].strip()))
    return sorted(found)


def main() -> None:
    """Count, print what is never taken, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coverage", type=Path, help="what `coverage json` wrote")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    measured: dict[str, Any] = json.loads(args.coverage.read_text())
    paths, untaken = 0, []
    for name, file in sorted(measured["files"].items()):
        missing = set(file["missing_lines"])
        for line, first, text in error_paths(Path(name).read_text(encoding="utf-8")):
            paths += 1
            if first in missing:
                untaken.append(f"{name}:{line}: {text}")
    lines = measured["totals"]
    result = {
        "error_paths": paths,
        "taken": paths - len(untaken),
        "lines": lines["num_statements"],
        "lines_run": lines["covered_lines"],
        "untaken": untaken,
        "command": "make coverage",
        "machine": machine(),
    }
    print(*untaken, f"{result['taken']} of {paths} error paths are taken; {lines['percent_covered']:.1f} % of the lines", sep="\n")
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

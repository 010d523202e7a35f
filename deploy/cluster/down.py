"""Ends everything that `make cluster` left: the demo itself, or what remained after it was killed."""

from __future__ import annotations

import sys

from leftovers import children, end, run_folder, running


def main() -> int:
    """End the demo; 0: nothing of it is left."""
    folder = run_folder()
    count = end(folder)
    if running(folder) is not None or children(folder):
        print(f"Processes {children(folder)} do not end.", file=sys.stderr)
        return 1
    print(f"Ended {count} processes." if count else "Nothing was running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

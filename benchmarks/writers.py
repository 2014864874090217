"""Measures whether labels are lost when `add`, the inbox and corrections write at once, on a slow disk.

    python -m benchmarks.writers [ROUNDS] [SECONDS]     # 200 rounds of each; each copy and rename takes 0.005 s

Writes benchmarks/results/writers.json: captures that came in, faults (lost or changed labels, rows without image,
images without row), and the duration.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from pinspect.core import environment
from tests.support.writers import KINDS, faults, make_writers, run_writers

RESULT = Path(__file__).parent / "results/writers.json"


def main(rounds: str = "200", seconds: str = "0.005") -> None:
    """Run the three writers and write the result."""
    environment.apply()
    with tempfile.TemporaryDirectory(prefix="pinspect-writers-") as folder:
        root = Path(folder) / "project"
        expected = make_writers(root, int(rounds))
        start = time.monotonic()
        writers = run_writers(root, int(rounds), float(seconds))
        errors = [writer.communicate()[1].strip() for writer in writers]
        result = {
            "writers": list(KINDS),
            "rounds": int(rounds),
            "seconds_per_copy_and_rename": float(seconds),
            "captures": len(expected),
            "exit_codes": [writer.returncode for writer in writers],
            "faults": faults(root, expected),
            "seconds": round(time.monotonic() - start, 1),
        }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    sys.exit("\n".join(filter(None, errors)) or bool(result["faults"]))


if __name__ == "__main__":
    main(*sys.argv[1:])

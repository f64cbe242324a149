"""Seconds of `import securefl`, beside the import of numpy alone (new interpreters, in turn).

The ratio says what SecureFL's front door adds to the array library that every user of it has
loaded anyway. CPU time of the child process, median of the repetitions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

CODE = "import time; a = time.process_time(); import {name}; print(time.process_time() - a)"


def cpu_seconds(name: str) -> float:
    """CPU seconds of importing `name` in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(name=name)], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"numpy": [], "accounting": [], "securefl": []}
    for _ in range(arguments.repeat):
        for name, values in seconds.items():
            values.append(cpu_seconds(name))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "cpu_seconds": medians,
        "securefl_over_numpy": medians["securefl"] / medians["numpy"],
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in medians.items():
        print(f"import {name:<12} {value:.3f} s CPU")
    print(f"securefl / numpy    {result['securefl_over_numpy']:.2f}")


if __name__ == "__main__":
    main()

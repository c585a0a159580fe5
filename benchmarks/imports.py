"""What `import torchorbit` costs, beside `import torch` alone.

In a new process each, in turns: `import torch`; `import torchorbit`, which imports nothing before it is asked for
something; `from torchorbit import *`, which has every public name; and what a script that prunes a model has. The table
has medians of the CPU time of a process from its start to its end, and their ratios to that of `import torch`.

Python keeps what it has compiled beside the sources, as it does for packages that are installed; a first run of each is
not counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

PROGRAMS = (
    "import torch",
    "import torchorbit",
    "from torchorbit import *",
    "import torch, torchorbit; torchorbit.convert; torchorbit.prune; torchorbit.load",
)


def cpu_seconds(program: str) -> float:
    """CPU time of a new process that runs a program."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    measured = f"{program}\nimport time; print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", measured], check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="processes for each")
    options = parser.parse_args()
    times: dict[str, list[float]] = {program: [] for program in PROGRAMS}
    for turn in range(options.repeats + 1):
        for program, taken in times.items():
            seconds = cpu_seconds(program)
            if turn:
                taken.append(seconds)
    print(f"{platform.machine()}, Python {platform.python_version()}\n")
    whole = statistics.median(times["import torch"])
    rows = [
        (f"`{program}`", statistics.median(taken), statistics.median(taken) / whole) for program, taken in times.items()
    ]
    print(tabulate(rows, ("program", "CPU seconds", "ratio"), tablefmt="github", floatfmt=("", ".2f", ".3f")))


if __name__ == "__main__":
    main()

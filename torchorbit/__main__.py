"""The program `torchorbit`, which is ``python -m torchorbit`` too: the command line of `harness`."""

from __future__ import annotations

import sys

from torchorbit.errors import ShadowedPackageError
from torchorbit.siblings import require_own


def main() -> int:
    """Run the command line, unless it is somebody else's that would run.

    Returns:
        The exit code.
    """
    try:
        require_own("harness")
        from harness.cli import main as run
    except ShadowedPackageError as error:
        sys.exit(f"torchorbit: {error}")
    return run()


if __name__ == "__main__":
    sys.exit(main())

"""Runs the engine over timm: model names become jobs, workers turn jobs into records, tables are made from records.

- What is swept: `models` and `weights` build it, and `plugins` imports what registers models of the user's.
- One model: `worker` finds out about it, with `verification`, `recall` and `meta` for its graph and `pruning` for what
  can be removed from it; `findings` is all that they found, and `cache` knows what was found out before.
- All of them: `sweep` hands `jobs` to a `backends.Backend`, whose workers run `supervisor`, which starts and watches a
  `process` for the models; `limits` and `memory` say what may be used and what is needed.
- What was found out: `columns` says what it consists of, `records` keeps it, `tables` shows it, `overview` shows it of
  one model, and `comparison` compares two sweeps.
- Pruned models: `making` prunes one of `sources` and saves it, `data` and `evaluating` measure it, and `publishing`
  publishes records and tables.
- `cli` is the command line, with `errors` that it prints and `logs` that it writes; `redaction` keeps from these what
  should not leave the machine.
"""

import sys

from torchorbit.errors import ShadowedPackageError
from torchorbit.siblings import require_own

try:
    require_own("zoo")
except ShadowedPackageError as error:
    if sys.argv[:1] != ["-m"]:
        raise
    # Python is on its way to a program in this package, where errors are one line.
    sys.exit(f"torchorbit: {error}")

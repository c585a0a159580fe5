"""The page of operators: what is known of each. ``nox -s operators`` writes it, and a test holds it to that.

An operator that needs something and lacks it is an empty cell, and stands in the list of gaps at the top. That it needs
none is declared, by its family or by itself, with the reason.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from torch.overrides import resolve_name

from torchorbit.operators import FAMILIES, KNOWN
from torchorbit.operators.declaring import Operator
from torchorbit.removal.masked_operators import MASKED

PAGE = Path("docs", "operators.md")

_HEAD = """# Operators

What is known of every operator that a graph may hold. A file per family in `torchorbit/operators/` declares it, and
`nox -s operators` makes this page from the declarations.

| column | says |
|---|---|
| operator | its signature, by which graphs and files hold its arguments |
| also written | other functions, methods and Python operators that become it |
| modules | the classes of `torch.nn` whose calls are calls of it |
| shape | whether a `formula` gives the shape of its result, or torch's `kernel` on meta tensors has to run |
| cost | whether it costs multiply-accumulates |
| rule | whether a label rule says which channels it ties |
| resize | whether numbers in its arguments are recomputed when channels go |
| contraction | whether it sums over `products` or over one `operand` alone, which is where scores look at channels |
| oracle | whether the masked run, by which removals are proved, has a meaning of its own for it |

`-` is what an operator does not need, for the reason below its table. An empty cell is a gap.
"""


def page() -> str:
    """The page, in Markdown."""
    gaps = [f"`{row.name}` has no {name}" for row in KNOWN.values() for name in missing(row)]
    lines = [_HEAD, f"{len(KNOWN)} operators in {len(FAMILIES)} families. Gaps: {', '.join(gaps) or 'none'}.", ""]
    for family, module in FAMILIES.items():
        rows = [row for row in KNOWN.values() if row.family == family]
        summary = inspect.getdoc(module) or ""
        lines += [f"## `{family}.py`", "", summary.splitlines()[0], ""]
        lines += ["| operator | also written | modules | shape | cost | rule | resize | contraction | oracle |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
        lines += ["", *_reasons(rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def missing(row: Operator) -> list[str]:
    """The capabilities that an operator lacks and is not said to need none of."""
    return [name for name, cell in _capabilities(row).items() if not cell and name not in row.needless]


def _capabilities(row: Operator) -> dict[str, str]:
    return {
        "cost": "yes" if row.cost is not None else "",
        "rule": "yes" if row.rule is not None else "",
        "resize": "yes" if row.resize is not None else "",
        "contraction": "products" if row.contraction is not None else "operand" if row.reduces else "",
        "oracle": "yes" if row.name in MASKED else "",
    }


def _cells(row: Operator) -> list[str]:
    capabilities = [cell or ("-" if name in row.needless else "") for name, cell in _capabilities(row).items()]
    leaves = [f"`{name}`" for leaf in row.modules for name in (leaf.name, *leaf.stand_ins)]
    return [
        f"`{_signature(row)}`",
        ", ".join([f"`{name}`" for name in _spellings(row)]),
        ", ".join(leaves),
        "kernel" if row.shape is None else "formula",
        *capabilities,
    ]


def _signature(row: Operator) -> str:
    if row.style == "module":
        return row.name
    parts = []
    for name, default in row.parameters.items():
        if name in row.keyword_only and "*" not in parts:
            parts.append("*")
        parts.append(name if default is inspect.Parameter.empty else f"{name}={default!r}")
    return f"{row.name}({', '.join(parts)})"


def _spellings(row: Operator) -> list[str]:
    symbol = [f"x {row.symbol} y".replace("|", "\\|")] if row.symbol else ["x[index]"] if row.style == "index" else []
    called = [resolve_name(function) or _qualified(function) for function in row.calls]
    return [*symbol, *row.names, *row.reflected, *dict.fromkeys(called)]


def _qualified(function: Any) -> str:
    return f"{getattr(function, '__module__', None) or 'torch'}.{function.__name__}"


def _reasons(rows: list[Operator]) -> list[str]:
    """Why the operators of a family need none of something: who shares a reason stands together."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, cell in _capabilities(row).items():
            if not cell and name in row.needless:
                found.setdefault((name, row.needless[name]), []).append(row.name)
    lines = []
    for (name, reason), names in found.items():
        whose = "" if len(names) == len([r for r in rows if not _capabilities(r)[name]]) else f" of {', '.join(names)}"
        lines.append(f"- no {name}{whose}: {reason}")
    return lines


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.write_text(page(), encoding="utf-8")

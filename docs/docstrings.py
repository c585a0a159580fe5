"""What the API reference makes of docstrings beside Markdown: ``::`` and what is indented behind it is Python code."""

from __future__ import annotations

import re
from textwrap import dedent, indent
from typing import Any

from griffe import Extension, Object

_BLOCK = re.compile(r"^( *)(.*):(:)\n\n((?:\1 +.*\n|\n)*\1 +.*)", re.MULTILINE)


class CodeBlocks(Extension):
    """Makes fenced blocks of those that ``::`` announces."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of an object that was just read."""
        if obj.docstring is not None:
            obj.docstring.value = _BLOCK.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match[str]) -> str:
    margin, text, _, code = match.groups()
    return f"{margin}{text}:\n\n" + indent(f"```python\n{dedent(code)}\n```", margin)

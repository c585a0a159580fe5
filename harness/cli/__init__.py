"""The command line: a module per group of commands, put together by `program`.

Another command is a function in one of the modules that `registry` names, or a module of its own and a line there.
Importing this imports neither torch nor timm, so that help comes at once: what a command needs, it imports when it
runs.
"""

from harness.cli.program import main

__all__ = ["main"]

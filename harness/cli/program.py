"""The program `torchorbit`: its commands under headings, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from harness.cli.registry import sections
from harness.cli.stopping import exit_code
from harness.errors import UsageError, one_line
from torchorbit.errors import TorchorbitError
from zoo.texts import one_line as plain

_LONGEST = 5000


class _Contents(click.Group):
    """A group whose help lists its commands under headings, in their order."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [str(command.name) for commands in sections().values() for command in commands]

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in sections().items():
            with formatter.section(heading):
                formatter.write_dl([(str(command.name), command.get_short_help_str()) for command in commands])


@click.group(
    cls=_Contents,
    commands=[command for commands in sections().values() for command in commands],
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="torchorbit")
def program() -> None:
    """Turn PyTorch models into graphs that can be edited, pruned, and saved without their code.

    Every command tells more with --help.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; by default what it was called with.

    Returns:
        The exit code: 0, 1 if something failed, 2 if the usage was wrong, 130 after Ctrl-C, 143 after SIGTERM. Errors
        are one line on stderr. That nobody reads the output to its end is none.
    """
    try:
        with _whether_read_or_not():
            result = program.main(arguments, prog_name="torchorbit", standalone_mode=False)
    except click.exceptions.Abort as error:
        return exit_code(error.__cause__)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "torchorbit"
        return _fail(f"{error.format_message()} (see {command} --help)", 2)
    except UsageError as error:
        return _fail(str(error), 2)
    except TorchorbitError as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), 1)
    except Exception as error:
        return _fail(one_line(error), 1)
    # Without standalone mode click returns the code of an Exit, and None where nothing was said.
    return result if isinstance(result, int) else 0


class _Forgiving:
    """A stream that goes on when there is nobody to read it any more.

    Args:
        stream: Standard output.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            return self._give_up(len(text))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._give_up(0)

    def _give_up(self, written: int) -> int:
        # What is still to be written, when Python shuts down for instance, goes nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        return written


@contextmanager
def _whether_read_or_not() -> Iterator[None]:
    """Let commands come to their end, and say by their exit codes how, though nobody reads what they print."""
    stream = sys.stdout
    if stream is None or isinstance(stream, _Forgiving):  # closed from the start
        yield
        return
    sys.stdout = _Forgiving(stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = stream


def _fail(message: str, code: int) -> int:
    click.echo(f"torchorbit: {plain(message, longest=_LONGEST)}", err=True)
    return code

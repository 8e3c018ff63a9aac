"""Every command of the house: a dataclass of flags comes in, an exit code goes out.

A command is a function of one config dataclass. Its fields are the flags, the string below a field is its help.
Exit codes: 0 done; 2 the user's input is at fault, said in one line; 1 a fault of ours, with the traceback; 130 Ctrl-C;
75 (EX_TEMPFAIL of sysexits.h) stopped as asked, with all that was done in safety: the same command goes on.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol, TextIO, TypeVar

import simple_parsing

Config = TypeVar("Config")


class Command(Protocol):
    """A program: flags (default: those of the command line) come in, an exit code goes out."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


PACKAGES = ("tokenizer_tools", "data_tools", "colossal_llama")
CONFIG_FILE_SUFFIXES = (".yaml", ".yml", ".json")
FIRST_SPEAKS_SECONDS = 20
STOPPED_EXIT_CODE = 75


class UserError(ValueError):
    """The user's input is at fault. The text is one line that names the value, the rule and the way out."""


class Stopped(Exception):  # noqa: N818  it is no error
    """The work was asked to stop, and has saved what it has done. The text is one line that names where."""


class _Parser(simple_parsing.ArgumentParser):
    """An argument parser that raises UserError where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists every flag")


def parse_config(
    config_class: type[Config], argv: Sequence[str], prog: str | None = None, flags_follow_file: bool = False
) -> Config:
    """Flags -> `config_class`. A single argument that names a .yaml or .json file holds the same names as the flags;
    with `flags_follow_file` others may stand behind it, and win.

    Raises UserError for an unknown flag, a missing one or a value of the wrong type.
    """
    if argv and argv[0].endswith(CONFIG_FILE_SUFFIXES) and (flags_follow_file or len(argv) == 1):
        argv = [*_flags_of_file(Path(argv[0])), *argv[1:]]
    parser = _Parser(
        prog=prog or Path(sys.argv[0]).name,
        description=config_class.__doc__,
        allow_abbrev=False,
        add_config_path_arg=False,
    )
    parser.add_arguments(config_class, dest="config")  # type: ignore[type-var]  # mypy cannot say "a dataclass"
    return parser.parse_args(list(argv)).config


def _flags_of_file(path: Path) -> list[str]:
    """{"lr": 1e-4, "dataset": ["a", "b"], "use_flash_attn": true} -> ["--lr", "0.0001", "--dataset", "a", "b", ...]"""
    values = read_mapping(path, "flags")
    flags: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        items = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *map(str, items)]
    return flags


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """A .yaml or .json file that holds `what` by their names. Raises UserError for what is none."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name an existing .yaml or .json file of {what}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8 text") from None
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: not readable as {path.suffix[1:]} ({reason}); write one `name: value` a line"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {type(values).__name__}, not a mapping; write one `name: value` a line")
    return values


def command(
    config_class: type[Config], flags_follow_file: bool = False
) -> Callable[[Callable[[Config], None]], Command]:
    """Make a command-line program of a function of one config: parse, run, turn errors into an exit code.

    `flags_follow_file`: as in `parse_config`.
    """

    def decorate(function: Callable[[Config], None]) -> Command:
        @functools.wraps(function)
        def program(argv: Sequence[str] | None = None) -> int:
            logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
            for package in PACKAGES:  # libraries log at INFO too, and say nothing there that a user needs
                logging.getLogger(package).setLevel(logging.INFO)
            signal.signal(signal.SIGTERM, _interrupt)  # Slurm's and torchrun's way to press Ctrl-C
            try:
                words = sys.argv[1:] if argv is None else argv
                function(parse_config(config_class, words, flags_follow_file=flags_follow_file))
                _flush_output()
            except UserError as error:
                return _fail(str(error), 2)
            except Stopped as stopped:
                return _leave_as_asked(str(stopped))
            except BrokenPipeError:  # the reader of our output left, `| head` for one
                silence(sys.stdout)
                return 0
            except OSError as error:  # no space, no permission, no such file: the user's machine, not our code
                if error.filename is None and error.strerror is None:
                    raise
                return _fail(f"{error.filename or 'output'}: {error.strerror}; nothing half-written was left behind", 2)
            except KeyboardInterrupt as interrupt:
                return _fail(f"{interrupt}" or "interrupted; nothing half-written was left behind", 130)
            return 0

        return program

    return decorate


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Ctrl-C, but once: a scheduler may repeat SIGTERM, and the second must not cut off the tidying up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _flush_output() -> None:
    """Hear here, not at the interpreter's very end (exit code 120), what a closed pipe or a full disk refuses."""
    try:
        sys.stdout.flush()
    except OSError:
        silence(sys.stdout)
        raise


def silence(stream: TextIO) -> None:
    """From now on what is written there goes nowhere, the interpreter's last flush included."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _leave_as_asked(message: str) -> int:
    if _is_first_of_its_host():
        print(" ".join(message.split()), file=sys.stderr, flush=True)
    return STOPPED_EXIT_CODE


def _fail(message: str, exit_code: int) -> int:
    """Say it once a host: its ranks fail together, and the first speaks."""
    if not _is_first_of_its_host() and not _has_failed_alone(exit_code):
        return exit_code
    try:
        print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    except OSError:  # nobody reads it any more; the exit code still tells
        silence(sys.stderr)
    return exit_code


def _is_first_of_its_host() -> bool:
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def _has_failed_alone(exit_code: int) -> bool:
    """Give the first rank time to speak. True if nothing has ended this one meanwhile, as it would if both had failed.

    Without that time torchrun ends a first rank that is still importing, and nobody says what is wrong.
    """
    if exit_code != 2 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        time.sleep(FIRST_SPEAKS_SECONDS)
    except KeyboardInterrupt:
        return False
    return True

"""Flags, exit codes and the one line that a user reads: each error message of command.py is triggered here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from simple_parsing import field, flag

from tests.conftest import argv_of
from tokenizer_tools.command import Command, Stopped, UserError, command, parse_config

CHILD_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Flags:
    """One field of each kind that the commands have."""

    name: str
    """Needed."""
    num_rows: int = field(default=1, alias=["--rows", "-n"])
    """With two other names."""
    lr: float = 3e-4
    """A number."""
    kind: Literal["small", "large"] = "small"
    """One of two."""
    data: list[Path] = field(default_factory=list)
    """As many as wanted."""
    output: Path | None = None
    """None unless given."""
    use_it: bool = flag(default=False)
    """Off unless given."""


@pytest.fixture(autouse=True)
def sigterm_as_before() -> Any:
    """A command takes SIGTERM over for its process, which here is pytest's."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def program(action: Callable[[Flags], None]) -> Command:
    return command(Flags)(action)


# --- flags ------------------------------------------------------------------------------------------------------------


def test_what_is_not_given_has_its_default() -> None:
    assert parse_config(Flags, ["--name", "a"]) == Flags("a")


def test_each_kind_of_flag_is_read() -> None:
    argv = argv_of(name="a", num_rows=2, lr=1e-4, kind="large", data=["x", "y/z"], output="o", use_it=True)
    expected = Flags("a", 2, 1e-4, "large", [Path("x"), Path("y/z")], Path("o"), True)
    assert parse_config(Flags, argv) == expected
    assert parse_config(Flags, [*argv[:-1], "--use_it=true"]) == expected


@pytest.mark.parametrize("alias", ["--num_rows", "--rows", "-n"])
def test_an_alias_is_as_good_as_the_name(alias: str) -> None:
    assert parse_config(Flags, ["--name", "a", alias, "7"]).num_rows == 7


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lr", "1"], "the following arguments are required: --name; "),
        (["--name", "a", "--num_rows", "many"], "invalid int value: 'many'; "),
        (["--name", "a", "--num_rows", "1.5"], "invalid int value: '1.5'; "),
        (["--name", "a", "--kind", "huge"], "argument --kind: invalid choice: 'huge' (choose from "),
        (["--name", "a", "--use_it", "maybe"], "Boolean value expected for argument, received 'maybe'; "),
        (["--name", "a", "--lr"], "argument --lr: expected one argument; "),
        (["--name", "a", "--nix", "1"], "unrecognized arguments: --nix 1; "),
        (["--name", "a", "--num_row", "1"], "unrecognized arguments: --num_row 1; "),  # no guessing of beginnings
        (["run.yaml", "--name", "a"], "unrecognized arguments: run.yaml; "),  # a file of flags stands alone
    ],
)
def test_a_wrong_flag_is_named_with_the_way_to_all_flags(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(Flags, argv, prog="tool")
    assert message in str(caught.value)
    assert str(caught.value).endswith("; `tool --help` lists every flag")


# --- a file of flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "run.yaml",
            "name: a 你\nrows: 2\nlr: 1e-4\nkind: large\ndata: [x, y z]\noutput: null\nuse_it: true\n",
        ),
        ("run.yml", "name: a 你\nnum_rows: 2\nlr: 0.0001\nkind: large\ndata:\n- x\n- y z\nuse_it: yes\n"),
        (
            "run.json",
            '{"name": "a 你", "num_rows": 2, "lr": 1e-4, "kind": "large", "data": ["x", "y z"], "use_it": true}',
        ),
    ],
)
def test_a_single_file_holds_the_same_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    config = parse_config(Flags, [str(tmp_path / name)])
    assert config == Flags("a 你", 2, 1e-4, "large", [Path("x"), Path("y z")], None, True)


def test_false_an_empty_list_and_a_negative_number_survive_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"name": "a", "use_it": False, "data": [], "num_rows": -3}))
    assert parse_config(Flags, [str(tmp_path / "run.json")]) == Flags("a", num_rows=-3)


def test_flags_behind_a_file_win_where_a_command_lets_them(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"name": "a", "num_rows": 2, "data": ["x"]}))
    words = [str(tmp_path / "run.json"), "--num_rows", "3", "--use_it"]
    assert parse_config(Flags, words, flags_follow_file=True) == Flags("a", 3, data=[Path("x")], use_it=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", None, "a.yaml: No such file or directory; name an existing .yaml or .json file of flags"),
        ("a.yaml", b"name: \xff", "a.yaml: not UTF-8 (invalid start byte at byte 6); save it as UTF-8 text"),
        ("a.yaml", b"name: [", "a.yaml: not readable as yaml (while parsing a flow node"),
        ("a.json", b'{"name": ', "a.json: not readable as json (Expecting value: line 1 column 10"),
        ("a.json", b'{"name": ', "; write one `name: value` a line"),
        ("a.yaml", b"- name", "a.yaml: holds list, not a mapping; write one `name: value` a line"),
        ("a.yaml", b"", "a.yaml: holds NoneType, not a mapping; write one `name: value` a line"),
        ("a.yaml", b"name: a\nnix: 1", "unrecognized arguments: --nix 1; "),
        ("a.yaml", b"name: a\nlr: fast", "invalid float value: 'fast'; "),
    ],
)
def test_a_file_at_fault_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        parse_config(Flags, [str(tmp_path / name)])
    assert message in str(caught.value)


def test_a_directory_with_the_name_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").mkdir()
    with pytest.raises(UserError, match="run.yaml: Is a directory; name an existing"):
        parse_config(Flags, [str(tmp_path / "run.yaml")])


# --- exit codes -------------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Command:
    def action(_: Flags) -> None:
        raise error

    return program(action)


def test_done_is_0_and_the_function_saw_its_config(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Flags] = []
    assert program(seen.append)(argv_of(name="a", num_rows=3)) == 0
    assert seen == [Flags("a", 3)]
    assert capsys.readouterr().err == ""


def test_without_arguments_the_command_line_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Flags] = []
    monkeypatch.setattr(sys, "argv", ["tool", "--name", "from the command line"])
    assert program(seen.append)() == 0
    assert seen == [Flags("from the command line")]


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (UserError("x: wrong;\n  do\n  y"), 2, "error: x: wrong; do y\n"),
        (
            OSError(28, "No space left on device"),
            2,
            "error: output: No space left on device; nothing half-written was left behind\n",
        ),
        (
            PermissionError(13, "Permission denied", "a/b"),
            2,
            "error: a/b: Permission denied; nothing half-written was left behind\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted; nothing half-written was left behind\n"),
        (KeyboardInterrupt("interrupted again: x"), 130, "error: interrupted again: x\n"),
        (Stopped("stopped by SIGTERM,\n saved in x"), 75, "stopped by SIGTERM, saved in x\n"),
    ],
)
def test_the_user_s_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, exit_code: int, line: str
) -> None:
    assert raising(error)(["--name", "a"]) == exit_code
    assert capsys.readouterr() == ("", line)


def test_a_wrong_flag_is_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert program(lambda _: None)(["--name", "a", "--nix"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[:35]) == ("", 1, "error: unrecognized arguments: --ni")


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours"), OSError("a library's words"), KeyError(1)])
def test_our_own_errors_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        raising(error)(["--name", "a"])
    assert caught.value is error


def test_help_is_on_stdout_with_every_field_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        program(lambda _: None)(["--help"])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    for text in ("One field of each kind", "--num_rows", "--rows", "With two other names.", "Off unless given."):
        assert text in out


@pytest.mark.parametrize(
    ("environment", "num_lines"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, 1),
        ({"RANK": "8", "LOCAL_RANK": "0"}, 1),  # the first of a second host, whose disk may be the one that is missing
        ({"RANK": "1", "LOCAL_RANK": "1"}, 0),
        ({"SLURM_LOCALID": "0"}, 1),
        ({"SLURM_LOCALID": "3"}, 0),
    ],
)
def test_of_the_ranks_of_a_host_only_the_first_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], num_lines: int
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_LOCALID"):  # a run in this process has left its own
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert raising(UserError("x"))(["--name", "a"]) == 2
    assert capsys.readouterr().err.count("\n") == num_lines


def test_a_later_rank_leaves_the_word_to_the_first_when_it_stops(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert raising(Stopped("saved in x"))(["--name", "a"]) == 75
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("is_ended_meanwhile", "num_lines"), [(True, 0), (False, 1)])
def test_under_torchrun_a_later_rank_leaves_the_word_and_the_time_to_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_ended_meanwhile: bool, num_lines: int
) -> None:
    """torchrun ends a first rank that is still importing if a later one, which says nothing, has left before it."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if is_ended_meanwhile:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("tokenizer_tools.command.time.sleep", sleep)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert raising(UserError("x"))(["--name", "a"]) == 2
    assert (len(waited), capsys.readouterr().err.count("\n")) == (1, num_lines)


# --- a process of its own ---------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from tokenizer_tools.command import command
from tokenizer_tools.outputs import whole_directory

@dataclass
class Config:
    target: Path = Path("out")
    overwrite: bool = False

@command(Config)
def main(config: Config) -> None:
    {body}

sys.exit(main())
"""

WRITE_AND_WAIT = """
    with whole_directory(config.target, config.overwrite) as aside:
        (aside / "half").write_text("half")
        try:
            print("ready", flush=True)
            time.sleep(600)
        finally:
            {finally_}
"""


def start(directory: Path, body: str, argv: Sequence[str] = (), **streams: Any) -> subprocess.Popen[str]:
    """A command of its own in `directory`. Output is buffered as in a shell, where PYTHONUNBUFFERED is not set."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "RANK")}
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body), *argv],
        cwd=directory,
        env={**environment, "PYTHONPATH": str(root)},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_a_command_with_130_and_nothing_half_written(tmp_path: Path, number: signal.Signals) -> None:
    child = start(tmp_path, WRITE_AND_WAIT.format(finally_="pass"))
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    assert [path.name.startswith(".out.") for path in tmp_path.iterdir()] == [True]
    child.send_signal(number)
    _, err = child.communicate(timeout=CHILD_TIMEOUT_SECONDS)
    assert (child.returncode, err) == (130, "error: interrupted; nothing half-written was left behind\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_leaves_the_old_output_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    child = start(tmp_path, WRITE_AND_WAIT.format(finally_="pass"), ["--overwrite"])
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=CHILD_TIMEOUT_SECONDS)
    assert child.returncode == 130
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"out", "out/old"}


def test_a_second_sigterm_does_not_cut_off_the_tidying_up(tmp_path: Path) -> None:
    child = start(tmp_path, WRITE_AND_WAIT.format(finally_="os.kill(os.getpid(), signal.SIGTERM); print('tidied')"))
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=CHILD_TIMEOUT_SECONDS)
    assert (child.returncode, out) == (130, "tidied\n"), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["'short'", "'long' * 100_000"], ids=["kept in the buffer", "more than the buffer"])
def test_a_reader_that_leaves_is_no_error(tmp_path: Path, text: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    child = start(tmp_path, f"print({text})", stdout=writing)
    os.close(writing)
    _, err = child.communicate(timeout=CHILD_TIMEOUT_SECONDS)
    assert (child.returncode, err) == (0, "")


def test_results_that_no_disk_takes_are_an_error_in_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        child = start(tmp_path, "print('short')", stdout=full)
        _, err = child.communicate(timeout=CHILD_TIMEOUT_SECONDS)
    expected = "error: output: No space left on device; nothing half-written was left behind\n"
    assert (child.returncode, err) == (2, expected)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit of the file size stands in for the disk: the system refuses the same write with another number."""
    body = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with whole_directory(config.target) as aside:
        (aside / "half").write_text("x" * 2000)
"""
    child = start(tmp_path, body)
    _, err = child.communicate(timeout=CHILD_TIMEOUT_SECONDS)
    assert (child.returncode, err) == (2, "error: output: File too large; nothing half-written was left behind\n")
    assert list(tmp_path.iterdir()) == []


def test_our_own_error_is_1_with_a_traceback(tmp_path: Path) -> None:
    child = start(tmp_path, "raise ValueError('ours')")
    _, err = child.communicate(timeout=CHILD_TIMEOUT_SECONDS)
    assert child.returncode == 1
    assert err.startswith("Traceback (most recent call last)") and err.endswith("ValueError: ours\n")

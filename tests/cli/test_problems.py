"""Every problem is one sentence and a status, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from drawing import two_blocks
from otfuse.core.recipe import parse_options, read
from otfuse.errors import DataError, TraceError, UsageError


class OutOfMemoryError(RuntimeError):
    """Stands for torch's, which is known by its name."""


CASES = {
    "ours": (DataError("d.npz: no array named 'x';\n give one"), 1, "d.npz: no array named 'x'; give one"),
    "usage": (UsageError("--out is missing"), 2, "--out is missing"),
    "interrupt": (KeyboardInterrupt(), 130, "interrupted; nothing unfinished was left behind"),
    "memory": (MemoryError(), 1, "out of memory"),
    "device memory": (OutOfMemoryError("CUDA out of memory"), 1, "out of memory"),
    "allocator": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
    "disk full": (OSError(errno.ENOSPC, "No space left on device", "out/x"), 1, "no space left on the device at out/x"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "out/x"), 1, "quota is used up at out/x"),
    "long name": (OSError(errno.ENAMETOOLONG, "File name too long", "xx"), 1, "too long for a file or folder at xx"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "out/x"), 1, "permission denied at out/x"),
    "bug": (ZeroDivisionError("division\nby zero"), 1, "unexpected ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize(("problem", "status", "words"), CASES.values(), ids=CASES)
def test_a_problem_is_one_sentence(otfuse, pipeline, problem, status, words):
    def fail(*_, **__):
        raise problem

    pipeline(inspect=fail)
    ran = otfuse("inspect", "m")
    assert (ran.status, ran.out) == (status, "")
    assert ran.err.startswith("otfuse: ")
    assert ran.err.count("\n") == 1
    assert words in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_wait_without_spinning_unless_told_to(otfuse, pipeline, monkeypatch, given):
    seen = []

    def looks(*_, **__):
        seen.append(os.environ["OMP_WAIT_POLICY"])
        raise UsageError("enough")

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    pipeline(inspect=looks)
    assert otfuse("inspect", "m").status == 2
    assert seen == [given or "PASSIVE"]


def test_debug_shows_the_traceback(pipeline, monkeypatch):
    from otfuse.cli import main

    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("otfuse.cli.output._configure", lambda **_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    pipeline(inspect=fail)
    monkeypatch.setenv("OTFUSE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "m"])


def test_an_interruption_that_a_library_turns_into_an_error_is_one_all_the_same(pipeline, monkeypatch, capsys):
    from otfuse.cli import main

    def fail(*_, **__):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RecursionError from None

    monkeypatch.setattr("otfuse.cli.output._configure", lambda **_: None)
    pipeline(inspect=fail)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit) as left:
            main(["inspect", "m"])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (left.value.code, capsys.readouterr().err) == (
        130,
        "otfuse: interrupted; nothing unfinished was left behind\n",
    )


def test_an_interruption_while_the_command_line_loads_is_told(monkeypatch, otfuse):
    monkeypatch.setitem(sys.modules, "otfuse.cli.commands", Interrupting("otfuse.cli.commands"))
    ran = otfuse("recipes")
    assert (ran.status, ran.err) == (130, "otfuse: interrupted; nothing unfinished was left behind\n")


class Interrupting(ModuleType):
    """A module whose loading is interrupted."""

    def __getattr__(self, name):
        raise KeyboardInterrupt


USAGE = {
    "no source": ("fuse", "a"),
    "no out": ("fuse", "a", "b"),
    "unknown option": ("fuse", "a", "b", "--outt", "x"),
    "unknown command": ("fusee",),
    "no data": ("eval", "a"),
    "batch of zero": ("eval", "a", "--data", "d", "--batch-size", "0"),
    "not a number": ("finetune", "a", "--data", "d", "--out", "o", "--steps", "many"),
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_wrong_usage_is_status_2(otfuse, arguments):
    ran = otfuse(*arguments)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--recipe", "otfusion-wt"), "did you mean 'otfusion-wts'?"),
        (
            ("--set", "otfusion.solvr=emd"),
            "unknown key 'otfusion.solvr'; did you mean 'otfusion.solver'? allowed in otfusion: features",
        ),
        (("--set", "solver=emd"), "unknown key 'solver'; did you mean 'otfusion.solver'?"),
        (("--set", "sheme=otfusion"), "unknown key 'sheme'; did you mean 'scheme'? allowed: scheme, weights"),
        (("--set", "otfusion.seed=1"), "unknown key 'otfusion.seed'; did you mean 'seed'? allowed: scheme"),
        (("--set", "otfusion=emd"), "otfusion cannot be 'emd': it is a section, whose keys are features, transform"),
        (("--set", "seed=2020-13-45"), "seed cannot be '2020-13-45'"),
        (("--set", "seed=!!int x"), "--set seed=!!int x: not valid YAML at line 1, column 1"),
        (("--set", "seed=0x" + "f" * 5000), "seed cannot be a number of thousands of digits"),
        (("--set", "seed=" + "[" * 5000), "[[[...: nested too deeply"),
        (("--set", "weights=&a [*a]"), "allowed: one number from 0 to 1 per model"),
        (("--set", "otfusion={solver: emd, solver: emd}"), "key 'solver' is given twice at line 1, column 15"),
        (("--set", "otfusion.solver=emdd"), "did you mean 'emd'?"),
        (("--set", "otfusion"), "write KEY=VALUE"),
        (("--set", "weights=[0.5, 0.6]"), "must sum to one"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_read(otfuse, tmp_path, arguments, words):
    ran = otfuse("fuse", "a", "b", "--out", tmp_path / "o", *arguments)
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert words in ran.err


def test_a_number_may_be_written_with_an_exponent():
    for text, value in {"1e-3": 1e-3, "1E-3": 1e-3, "2.5e1": 25.0, ".5e+1": 5.0, "0.01": 0.01, "auto": "auto"}.items():
        recipe = read("otfusion-wts", parse_options([f"otfusion.regulariser={text}"]))
        assert recipe.otfusion.regulariser == value


def test_an_empty_section_has_its_defaults():
    plain = read({"scheme": "otfusion"})
    assert read({"scheme": "otfusion", "otfusion": None}) == plain
    assert read({"scheme": "otfusion"}, parse_options(["otfusion="])) == plain
    assert read({"scheme": "otfusion", "otfusion": None}, {"otfusion.solver": "emd"}).otfusion.solver == "emd"


def test_example_inputs_are_told_as_what_the_command_line_does_not_have(otfuse, pipeline):
    def refuse(*_, **__):
        raise TraceError("Net has no config to make example inputs from: give example_inputs (a dict or a tuple)")

    pipeline(inspect=refuse)
    ran = otfuse("inspect", "m", "--trust-remote-code")
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "example_inputs are an argument of the Python functions" in ran.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fuse", "a", "b", "--out", "o", "--json"), "o was written whole, but the report on it could not be printed"),
        (("inspect", "a", "--json"), "the result could not be printed"),
        (("recipes",), "the result could not be printed"),
    ],
)
def test_what_cannot_be_printed_is_not_what_was_not_written(otfuse, pipeline, monkeypatch, arguments, words):
    report = SimpleNamespace(to_dict=dict)
    pipeline(fuse_checkpoints=lambda *_, **__: SimpleNamespace(report=report, plan=None, out=Path("o")))
    pipeline(inspect=lambda *_, **__: SimpleNamespace(graph=two_blocks(), verification=None))
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 - a stream like sys.stdout
        monkeypatch.setattr(sys, "stdout", full)
        ran = otfuse(*arguments)
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert words in ran.err
    assert "nothing was written" not in ran.err


SPEAKING = """
from otfuse.cli import main, output
from otfuse.core import recipe
def names():
    with output.reporting(quiet=False, verbose=False) as progress:
        progress("load", 0, 1)
    output.show("a table")
    return ["a name"]
recipe.names = names
main(["recipes"])
"""


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [
        (">&-", "", "otfuse: load\n"),
        ("2>&-", "a table\na name\n", ""),
        ("<&- >&- 2>&-", "", ""),
        ("<&-", "a table\na name\n", "otfuse: load\n"),
    ],
)
def test_what_goes_to_a_closed_stream_is_dropped(closed, out, err):
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", SPEAKING]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, out, err)


def test_help_and_check_of_a_share_agree(otfuse):
    told = " ".join(otfuse("finetune", "--help").out.split())
    assert told.count("from 0 to below 1") == 2
    assert "<=1" not in told


def test_no_arguments_print_the_help(otfuse):
    ran = otfuse()
    assert ran.status == 0
    for command in ("fuse", "inspect", "eval", "finetune", "recipes", "demo"):
        assert f"\n  {command} " in ran.out


def test_version(otfuse):
    assert otfuse("--version").out.startswith("otfuse ")


def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m otfuse.cli recipes otfusion-wts | true"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ran.stderr == ""


def test_json_of_the_module_form():
    ran = subprocess.run(
        [sys.executable, "-m", "otfuse.cli", "recipes", "--json"], capture_output=True, text=True, check=True
    )
    assert "vanilla" in json.loads(ran.stdout)["recipes"]


def test_a_polite_kill_is_an_interruption():
    code = (
        "import os, signal; from otfuse.core import recipe; from otfuse import cli\n"
        "recipe.names = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "cli.main(['recipes'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (130, "")
    assert ran.stderr == "otfuse: interrupted; nothing unfinished was left behind\n"

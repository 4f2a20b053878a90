"""`otfuse fuse` stopped at every stage: a sentence, and either nothing or the whole is left."""

from __future__ import annotations

import os
import signal

import pytest
from safetensors.torch import load_file

from forked import command, started
from tiny import listing

FILES = {"README.md", "config.json", "fusion.json", "model.safetensors", "preprocessor_config.json"}


def trial(arguments, stage=None, number=None):
    """The exit status and the messages of one run, which gets the signal when it announces the stage."""
    process, lines = started(command, *map(str, arguments))
    said = []
    with lines:
        for line in lines:
            if line == f"otfuse: {stage}\n":
                os.kill(process.pid, number)
            elif line.startswith("otfuse: ") and " " not in line[8:]:
                continue  # a stage
            else:
                said.append(line)
    process.join()
    return process.exitcode, "".join(said)


def whole(out):
    assert set(listing(out)) == FILES
    assert load_file(out / "model.safetensors")


@pytest.mark.parametrize("stage", ["load", "trace", "verify", "align", "write"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_nothing_or_the_whole(models, tmp_path, stage, number):
    out = tmp_path / "new" / "out"
    arguments = ("fuse", models / "vit0", models / "vit1", "--out", out)
    status, said = trial(arguments, stage, number)
    if out.exists():
        assert stage == "write"
        whole(out)
    elif number == signal.SIGKILL:
        assert (status, said) == (-signal.SIGKILL, "")
        assert all(part.startswith("new/.out.") for part in listing(tmp_path)[1:])
    else:
        assert (status, said) == (130, "otfuse: interrupted; nothing unfinished was left behind\n")
        assert listing(tmp_path) == []
    if stage == "write" and not out.exists():
        assert trial(arguments) == (0, f"otfuse: wrote {out}\n")
        whole(out)
        assert sorted(p.name for p in out.parent.iterdir()) == ["out"], "the next run removes what a killed one left"

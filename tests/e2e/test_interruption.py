"""`otfuse fuse` stopped at every stage: a sentence, and either nothing or the whole is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tiny import listing

# One process imports everything once and is forked for every trial.
SERVER = """
import json, os, signal, sys
import torch
from otfuse import cli, pipeline
from otfuse.evaluate import metrics
import otfuse.report.table, transformers.models.vit.modeling_vit
torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))  # imports the rest
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
for line in sys.stdin:
    child = os.fork()
    if not child:
        cli.main(json.loads(line))
    _, status = os.waitpid(child, 0)
    print("over", os.waitstatus_to_exitcode(status), file=sys.stderr, flush=True)
"""
FILES = {"README.md", "config.json", "fusion.json", "model.safetensors", "preprocessor_config.json"}


@pytest.fixture(scope="module")
def server():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [sys.executable, "-u", "-c", SERVER], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield process
        process.stdin.close()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def trial(server, arguments, stage=None, number=None):
    """The exit status and the messages of one run, which gets the signal when it announces the stage."""
    print(json.dumps(list(map(str, arguments))), file=server.stdin, flush=True)
    said = []
    while not (line := server.stderr.readline()).startswith("over "):
        assert line, f"the server is gone; it said: {said}"
        if line == f"otfuse: {stage}\n":
            for child in children(server.pid):
                os.kill(child, number)
        elif line.startswith("otfuse: ") and " " not in line[8:]:
            continue  # a stage
        else:
            said.append(line)
    return int(line.split()[1]), "".join(said)


def whole(out):
    assert set(listing(out)) == FILES
    assert load_file(out / "model.safetensors")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the forked process in /proc")
@pytest.mark.parametrize("stage", ["load", "trace", "verify", "align", "write"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_nothing_or_the_whole(server, models, tmp_path, stage, number):
    out = tmp_path / "new" / "out"
    arguments = ("fuse", models / "vit0", models / "vit1", "--out", out)
    status, said = trial(server, arguments, stage, number)
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
        assert trial(server, arguments) == (0, f"otfuse: wrote {out}\n")
        whole(out)
        assert sorted(p.name for p in out.parent.iterdir()) == ["out"], "the next run removes what a killed one left"

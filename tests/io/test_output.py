"""The output is whole or absent: refusals before the work, faults during it, and kills at any moment."""

import errno
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from otfuse.errors import OutputError
from otfuse.io import shards, staging, writer
from otfuse.io.shards import Shards
from otfuse.io.writer import check_target, write_checkpoint


def model(value=1.0):
    layer = nn.Linear(3, 3)
    nn.init.constant_(layer.weight, value)
    nn.init.zeros_(layer.bias)
    return layer


def refused(out, sentence, **options):
    with pytest.raises(OutputError, match=f"^{re.escape(f'output {out}: {sentence}')}$"):
        check_target(out, **options)


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_refusals_leave_nothing_behind(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    before = listing(tmp_path)
    refused(full, "the folder is not empty; choose another --out, or empty it")
    refused(full, "the folder is not empty; choose another --out, or empty it", overwrite=True)  # it is no checkpoint
    refused(full / "notes.txt", "a file of that name exists; choose another --out")
    refused(full / "notes.txt/deep/out", f"{full / 'notes.txt'} is a file, not a folder; choose another --out")
    with pytest.raises(OutputError, match=r"GB needed, .* GB free; free some space or choose another --out$"):
        check_target(tmp_path / "new", need=10**18)
    check_target(tmp_path / "deep/er/new")
    assert listing(tmp_path) == before


def test_unwritable_place(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # tests may run as root, who may write anywhere
    refused(tmp_path / "out", "cannot be written there (Permission denied), nothing was written; choose another --out")


def test_writing_into_an_empty_folder_and_over_a_checkpoint(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(out, model(), None, files={"config.json": "{}"})
    with pytest.raises(OutputError, match="not empty"):
        write_checkpoint(out, model(2.0), None)
    write_checkpoint(out, model(2.0), None, overwrite=True)
    assert load_file(out / "model.safetensors")["weight"].unique().tolist() == [2.0]
    assert listing(tmp_path) == ["out", "out/model.safetensors"]


def test_a_folder_filled_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    def save(*args):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/theirs").write_text("x")

    monkeypatch.setattr(writer, "_save", save)
    with pytest.raises(OutputError, match="cannot be written there"):
        write_checkpoint(tmp_path / "out", model(), None)
    assert listing(tmp_path) == ["out", "out/theirs"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_exception_leaves_nothing(error, tmp_path, monkeypatch):
    def save(model, folder, size):
        (folder / "half").write_text("x")
        raise error

    monkeypatch.setattr(writer, "_save", save)
    with pytest.raises(error):
        write_checkpoint(tmp_path / "deep/er/out", model(), None)
    assert listing(tmp_path) == []


FULL = "the disk is full ({}), nothing was written; free some space or choose another --out"


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("save", ["safetensors", "text"])
def test_full_disk(save, small_disk, monkeypatch):
    monkeypatch.setattr(writer, "_bytes", lambda *args: 0)  # past the check of free space, as if others filled the disk
    size, files = (200, {}) if save == "safetensors" else (2, {"README.md": "x" * 100_000})
    with pytest.raises(OutputError, match=re.escape(FULL.format("No space left on device"))):
        write_checkpoint(small_disk / "out", nn.Linear(size, size), None, files=files)
    assert listing(small_disk) == []


def test_too_little_space_is_told_before_the_work(small_disk):
    with pytest.raises(OutputError, match=r"0\.00016 GB needed, 6\.6e-05 GB free; free some space"):
        write_checkpoint(small_disk / "out", nn.Linear(200, 200), None)


def test_file_size_limit(tmp_path):
    """The operating system's own refusal in the middle of a file, without needing root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match=re.escape(FULL.format("File too large"))):
            write_checkpoint(tmp_path / "out", nn.Linear(100, 100), None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert listing(tmp_path) == []


def test_what_the_disk_refuses_meanwhile_is_told(tmp_path, monkeypatch):
    """Shards are sent to the disk while others are still made; what it says then is said at the end at the latest."""

    def refuse(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards, "_DUE", 1_000)
    monkeypatch.setattr(shards.os, "fsync", refuse)
    entries = {"a": (torch.float32, (1_000,)), "b": (torch.float32, (1_000,))}
    made = Shards(tmp_path, {"model.safetensors": entries}, index=False, target=tmp_path / "out")
    for key in entries:
        made.write(key, torch.ones(1_000).split(300))
    with (
        pytest.raises(OutputError, match=re.escape(FULL.format("No space left on device"))),
        writer.one_sentence(tmp_path / "out"),
    ):
        made.close()
    made.abandon()


def test_sweep_takes_only_what_dead_processes_left(tmp_path):
    dead, other = tmp_path / ".out.0123456789abcdef.partial", tmp_path / ".outer.0123456789abcdef.partial"
    mine = tmp_path / ".out.mine.partial"
    for folder in (dead, other, mine):
        folder.mkdir()
        (folder / "x").write_text("x")
    with staging.staged(tmp_path / "out") as alive:
        staging.sweep(tmp_path / "out")
        assert alive.exists(), "its process lives and holds the lock"
        assert not dead.exists()
    assert listing(tmp_path) == [mine.name, f"{mine.name}/x", other.name, f"{other.name}/x", "out"]


def test_sweep_puts_back_what_was_being_replaced(tmp_path):
    old = tmp_path / ".out.0123456789abcdef.replaced"
    old.mkdir()
    (old / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="not empty"):
        check_target(tmp_path / "out")
    assert listing(tmp_path) == ["out", "out/config.json"]


def test_terminated(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as caught, staging.staged(tmp_path / "out") as folder:  # noqa: PT012
            (folder / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert caught.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert listing(tmp_path) == []


def test_written_from_another_thread(tmp_path):
    thread = threading.Thread(target=write_checkpoint, args=(tmp_path / "out", model(), None))
    thread.start()
    thread.join()
    assert (tmp_path / "out/model.safetensors").is_file()


CHILD = """
import os, sys
from pathlib import Path
import torch
from torch import nn
from otfuse.io.writer import write_checkpoint
model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(4)])
while sys.stdin.readline():                 # one process image, forked for every trial: importing takes seconds
    child = os.fork()
    if not child:
        write_checkpoint(Path(sys.argv[1]), model, None, files={f"{i}.txt": "whole" * 4000 for i in range(20)})
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()                    # until it is waited for, the number of a dead child stays its own
    os.waitpid(child, 0)
    print("done", flush=True)
"""


def whole(out):
    assert len(load_file(out / "model.safetensors")) == 4
    assert len(listing(out)) == 21
    assert all((out / f"{i}.txt").read_text() == "whole" * 4000 for i in range(20))


def test_killed_at_any_moment_leaves_nothing_or_the_whole(tmp_path):
    out, chance = tmp_path / "out", random.Random(7)
    seen = {True: 0, False: 0}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:

        def trial(delay):
            print(file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            if delay is not None:
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
            print(file=parent.stdin, flush=True)
            parent.stdout.readline()

        def again():
            for path in sorted(out.rglob("*"), reverse=True):
                path.unlink()
            if out.exists():
                out.rmdir()

        trial(None)
        whole(out)
        again()
        window = 0.001
        while not out.exists():  # as long as this machine needs for the whole
            window *= 1.5
            trial(window)
        for _ in range(40):
            again()
            trial(chance.uniform(0, window))
            if out.exists():
                whole(out)
            seen[out.exists()] += 1
            window *= 0.9 if out.exists() else 1.1  # follows the load of the machine
            left = [p for p in tmp_path.iterdir() if p != out]
            assert all(p.name.startswith(".out.") for p in left)
            assert len(left) <= 1, "each run removes what the killed one before it left"
        parent.stdin.close()
    assert min(seen.values()) > 3, f"kills must fall before and after the end: {seen}"
    check_target(tmp_path / "other")
    staging.sweep(out)
    assert [p for p in tmp_path.iterdir() if p != out] == []
    assert torch.is_tensor(load_file(out / "model.safetensors")["0.weight"]) if out.exists() else True

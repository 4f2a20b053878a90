"""What does not fit is refused before any work, by what is free in the machine and in the control group."""

from types import SimpleNamespace

import pytest

from otfuse.errors import ResourceError
from otfuse.measure import room

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000 * MIB))


def group(folder, version, limit, used, files=0):
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        folder = folder / "memory"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(exist_ok=True)
    for name, value in zip(names[:2], (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {files}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_lesser_of_machine_and_group_is_free(tmp_path, version):
    assert room.free_mib(tmp_path) == 1000
    group(tmp_path, version, 700 * MIB, 300 * MIB)
    assert room.free_mib(tmp_path) == 400
    group(tmp_path, version, 700 * MIB, 300 * MIB, files=100 * MIB)
    assert room.free_mib(tmp_path) == 500, "the group gives files back"
    group(tmp_path, version, 9000 * MIB, 0)
    assert room.free_mib(tmp_path) == 1000
    group(tmp_path, version, "max", 300 * MIB)
    assert room.free_mib(tmp_path) == 1000
    group(tmp_path, version, 1 * MIB, 300 * MIB)
    assert room.free_mib(tmp_path) == 0


def test_a_refusal_says_what_helps(monkeypatch):
    monkeypatch.setattr(room, "free_mib", lambda: 400.0)
    room.require_room(400, what="this fusion", helps="x")
    told = "this fusion is expected to need 1,500 MiB more memory, and 400 MiB are free; what helps: --recipe vanilla"
    with pytest.raises(ResourceError) as error:
        room.require_room(1500, what="this fusion", helps="--recipe vanilla")
    assert str(error.value) == told
    with pytest.raises(ResourceError):
        room.require_room(float("nan"), what="this fusion", helps="x")

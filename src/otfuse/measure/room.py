"""How much memory is free, and a refusal where a run would not fit: the system kills without a word."""

from __future__ import annotations

from pathlib import Path

import psutil

from otfuse.errors import ResourceError

_MIB = 1 << 20
_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))  # v2, v1


def free_mib(groups: Path = _GROUPS) -> float:
    """What this process may still take, in MiB: what the machine has, or what is left of its control group's limit."""
    found = [int(psutil.virtual_memory().available)]
    for limit, used in _LIMITS:
        try:
            left = int((groups / limit).read_text()) - int((groups / used).read_text())
        except (OSError, ValueError):  # no such group, or one without a limit ("max")
            continue
        found.append(left + _cached(groups / limit))
    return max(0, min(found)) / _MIB


def require_room(needed: float, *, what: str, helps: str) -> None:
    """ResourceError if ``needed`` MiB are more than are free; ``helps`` says what would need less."""
    if not (free := free_mib()) >= needed:
        raise ResourceError(
            f"{what} is expected to need {needed:,.0f} MiB more memory, and {free:,.0f} MiB are free; what helps: {helps}"
        )


def _cached(limit: Path) -> int:
    """Bytes of files that the group holds and gives back when asked."""
    try:
        told = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(told.get("inactive_file", told.get("total_inactive_file", 0)))

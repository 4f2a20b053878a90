"""Where in the user's code an operator was called."""

from __future__ import annotations


def where(node: object) -> str:
    """File and line of the innermost frame outside torch."""
    lines = str(getattr(node, "meta", {}).get("stack_trace") or "").splitlines()
    frames = [line.strip() for line in lines if line.strip().startswith("File ")]
    own = [frame for frame in frames if "/torch/" not in frame]
    if not own:
        return "an unknown place"
    name, line = own[-1].split('"')[1], own[-1].split("line ")[1].split(",")[0]
    return f"{name.rsplit('/', 1)[-1]}:{line}"

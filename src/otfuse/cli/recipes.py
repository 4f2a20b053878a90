"""`otfuse recipes`: the named recipes, or one with every option set."""

from __future__ import annotations

from typing import Annotated

import typer

from otfuse.cli import options, output


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A recipe, to see it with every option set.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the named recipes, or print one as YAML with every option set."""
    from otfuse.core import recipe

    if name is not None:
        chosen = recipe.read(name)
        if as_json:
            output.emit(chosen.model_dump(mode="json"))
        else:
            output.put(chosen.to_yaml())
        return
    names = recipe.names()
    if as_json:
        output.emit({"recipes": names})
    else:
        output.put("\n".join([*names, ""]))

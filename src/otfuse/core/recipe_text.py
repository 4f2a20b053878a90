"""YAML as recipes are written: ``1e-3`` is a number, a date is text, and every key stands once."""

from __future__ import annotations

import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_SCIENTIFIC = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+\Z")


class RecipeTextError(ValueError):
    """What is wrong with a text, and what to do: the end of a sentence that begins with its place."""


class _RepeatedKeyError(yaml.MarkedYAMLError):
    pass


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for what it reads otherwise than people mean it."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - the library's signature
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # `!!int x`, `!!bool x`
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _RepeatedKeyError(problem=key.value, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != f"{_TAG}timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}float", _SCIENTIFIC, list("+-.0123456789"))


def load(text: str) -> Any:
    """The value that ``text`` holds; :class:`RecipeTextError` if it holds none."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except _RepeatedKeyError as error:
        raise RecipeTextError(f"key {error.problem!r} is given twice{_at(error)}; keep one of the two") from None
    except yaml.YAMLError as error:
        raise RecipeTextError(f"not valid YAML{_at(error)}; mend that line") from None
    except RecursionError:
        raise RecipeTextError("nested too deeply; a recipe has keys, and sections of keys, and no more") from None


def _at(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""

"""A configuration file's text -> plain values, with dotted overrides put in; their meaning is config.py's affair."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lampseg.errors import UserError


def read_tree(path: Path, *, overrides: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The fields of a YAML file as nested dicts and lists.

    Args:
        overrides: dotted field -> value as YAML text, e.g. `{"curriculum.0.patch": "[16, 16, 32]"}`.

    Raises:
        UserError: the file is missing, cannot be read, is no YAML or no mapping, gives a field twice; or an override
            names an entry that is not there.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such configuration file; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; give the YAML file itself") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a YAML file in UTF-8") from error
    tree = _parse(text, source=str(path))
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else type(tree).__name__
        raise UserError(
            f"{path}: expected fields such as `data:` and `curriculum:`, found {found}; see "
            "docs/reference/configuration.md"
        )
    for field, value in (overrides or {}).items():
        _override(tree, field, _parse(value, source=field))
    return tree


class _Loader(yaml.SafeLoader):
    """Plain values only; a field that is given twice is an error, where YAML's own loader keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in names:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"`{key.value}` is given twice: keep one", key.start_mark
                    )
                names.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _parse(text: str, *, source: str) -> Any:
    """Raises UserError with the place of the fault, in one line."""
    try:
        return _numbers(yaml.load(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        tab = "\\t" in str(error.problem) or "\t" in str(error.problem)
        remedy = "; indent with spaces, YAML allows no tabs" if tab else ""
        raise UserError(f"{source}{place}: not valid YAML: {error.problem}{remedy}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, OverflowError) as error:  # e.g. a date that no calendar has
        raise UserError(f"{source}: not valid YAML: {error}; put text in quotes") from error
    except RecursionError as error:
        raise UserError(
            f"{source}: is nested too deeply, or an anchor (&) contains itself; write it plainly"
        ) from error


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` (no dot) as a string; gives it the number that was meant."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and value.lstrip("+-")[:1].isdigit() and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _override(tree: dict[str, Any], field: str, value: Any) -> None:
    *parents, last = field.split(".")
    node: Any = tree
    for key in parents:
        child = node[_index(key, node, field)] if isinstance(node, list) else node.get(key)
        if child is None:
            child = node[_index(key, node, field) if isinstance(node, list) else key] = {}
        if not isinstance(child, dict | list):
            raise UserError(f"{field}: `{key}` holds the plain value {child!r}, it has no field `{last}`")
        node = child
    if isinstance(node, list):
        node[_index(last, node, field)] = value
    else:
        node[last] = value


def _index(key: str, items: list[Any], field: str) -> int:
    if not (key.isascii() and key.isdecimal()) or int(key) >= len(items):
        there = f"its entries are 0 to {len(items) - 1}" if items else "it has no entries yet"
        raise UserError(f"{field}: there is no entry `{key}`: {there}, counted from 0")
    return int(key)

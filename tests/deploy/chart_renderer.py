"""A stand-in for `helm template`: the few forms that our chart uses, by the rules of Go's templates; anything else is an error, not a guess."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

_ACTION = re.compile(r"(\s*){{(-?) (.*?) }}")
_PATH = r"\.(?:Values|Release|Chart)(?:\.\w+)+"
_VALUE = re.compile(rf"(toYaml )?({_PATH})(?: \| (quote|nindent (\d+)))?")


def render(chart: Path, release: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the documents of a chart's templates; `values` replace those of values.yaml, tables by table."""
    scope = {
        "Values": merged(yaml.safe_load((chart / "values.yaml").read_text()), values),
        "Release": {"Name": release},
        "Chart": yaml.safe_load((chart / "Chart.yaml").read_text()),
    }
    texts = [render_text(path.read_text(), scope) for path in sorted((chart / "templates").glob("*.yaml"))]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`; helm merges tables the same way."""
    tables = {key for key, value in over.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return {**base, **{key: merged(base[key], value) if key in tables else value for key, value in over.items()}}


def render_text(text: str, scope: dict[str, Any]) -> str:
    """Render one template. Raises ValueError for a form that is not known here."""
    output: list[str] = []
    # Of every `if` around: whether it is written, and whether a branch was.
    branches: list[tuple[bool, bool]] = []
    place = 0

    def write(piece: str) -> None:
        if all(written for written, _ in branches):
            output.append(piece)

    for match in _ACTION.finditer(text):
        write(text[place : match.start()] + ("" if match[2] else match[1]))
        place = match.end()
        action = match[3]
        if condition := re.fullmatch(rf"if ({_PATH})", action):
            truth = bool(lookup(condition[1], scope))
            branches.append((truth, truth))
        elif action == "else":
            _, before = branches.pop()
            branches.append((not before, True))
        elif action == "end":
            branches.pop()
        else:
            write(value_of(action, scope))
    write(text[place:])
    if branches or "{{" in "".join(output):
        raise ValueError("an `if` without `end`, or an action that is not written as {{ ... }}")
    return "".join(output)


def value_of(action: str, scope: dict[str, Any]) -> str:
    match = _VALUE.fullmatch(action)
    if match is None:
        raise ValueError(f"{{{{ {action} }}}} is not known here: keep the templates to simple forms, or teach it to this stand-in")
    value = lookup(match[2], scope)
    plain = str(value).lower() if isinstance(value, bool) else str(value)
    text = yaml.safe_dump(value, default_flow_style=False).rstrip("\n") if match[1] else plain
    if match[3] == "quote":
        return json.dumps(text)
    if match[4]:
        return "".join(f"\n{' ' * int(match[4])}{line}" if line else "\n" for line in text.split("\n"))
    return text


def lookup(path: str, scope: dict[str, Any]) -> Any:
    """Return a value; a name that does not exist is an error here, where helm would write nothing."""
    value: Any = scope
    for name in path.lstrip(".").split("."):
        value = value[name[0].lower() + name[1:] if value is scope.get("Chart") else name]
    return value

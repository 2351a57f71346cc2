"""The page of what `import heron` gives: each public name with its signature and its docstring."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import heron

_WIDTH = 100

_HEAD = (
    "Every name of `heron.__all__`; how they are used is told in [Python](../python.md). Names that are not here may change with any release. "
    "`Run`, `History` and `Curves` are made by functions, never by hand.\n"
)


def api_page(note: str) -> str:
    """Return the page."""
    parts = ["# Every name of Python\n", note, _HEAD]
    for name in heron.__all__:
        if not name.startswith("_"):
            parts += [f"## heron.{name}\n", *_told(name, getattr(heron, name))]
    return "\n".join(parts).rstrip("\n") + "\n"


def _told(name: str, value: Any) -> Iterator[str]:
    if inspect.isfunction(value):
        yield _signature(name, value)
        yield from _prose(value)
        return
    yield from _prose(value)
    if issubclass(value, BaseException):
        return
    own_constructor = vars(value).get("__init__")
    if name not in ("Run", "Curves") and inspect.isfunction(own_constructor):
        yield _signature(name, value)
        yield from _prose(own_constructor)
    for attribute, member in vars(value).items():
        if attribute.startswith("_") or not inspect.getdoc(member):
            continue
        if isinstance(member, property):
            yield f"### {name}.{attribute}\n"
            yield from _prose(member)
        elif inspect.isfunction(member):
            yield f"### {name}.{attribute}()\n"
            yield _signature(attribute, member)
            yield from _prose(member)


class _Bare(str):
    """An annotation as it is written, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(name: str, value: Any) -> str:
    signature = inspect.signature(value)
    own = [one.replace(annotation=_Bare(one.annotation)) for one in signature.parameters.values() if one.name != "self"]
    returned = signature.return_annotation
    shown = signature.replace(parameters=own, return_annotation=returned if returned in (None, signature.empty) else _Bare(returned))
    line = f"{name}{shown}"
    if len(line) > _WIDTH:
        # As the formatter of our code has it: a parameter a line.
        words = [str(one) for one in shown.parameters.values()]
        first_named = next((i for i, one in enumerate(shown.parameters.values()) if one.kind is one.KEYWORD_ONLY), None)
        if first_named is not None:
            words.insert(first_named, "*")
        end = "" if shown.return_annotation is shown.empty else f" -> {shown.return_annotation}"
        line = f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){end}"
    return f"```python\n{line}\n```\n"


def _prose(value: Any) -> Iterator[str]:
    """Yield the first line of a docstring, and the rest of it as it stands."""
    first, _, rest = (inspect.getdoc(value) or "").partition("\n")
    yield f"{first.strip()}\n"
    if rest.strip():
        yield f"```text\n{rest.strip()}\n```\n"

"""Options from three places: flags, then environment variables, then a TOML file, then defaults. All mistakes come at once."""

from __future__ import annotations

import argparse
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from heron_common.errors import ConfigurationError
from heron_common.exit_codes import exit_codes_help

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True)
class OptionSource:
    """Where options come from: the program's name, the prefix of its variables, its sections in order."""

    program: str
    description: str
    environment_prefix: str
    version: str


def flag_of(field: str) -> str:
    """Return the flag of a field: round_deadline_seconds -> --round-deadline-seconds."""
    return f"--{field.replace('_', '-')}"


def sections_of(config_type: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the section models of a configuration, by field name; option names are unique over all of them."""
    annotations = {name: field.annotation for name, field in config_type.model_fields.items()}
    return {name: kind for name, kind in annotations.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def read_options(config_type: type[Config], source: OptionSource, arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Read a configuration whose fields are sections of options.

    Raises:
        ConfigurationError: names every unknown or wrong option, each with what was expected.

    """
    sections = sections_of(config_type)
    given = _parse_flags(sections, source, arguments)
    mistakes: list[str] = []
    file = _read_file(given.pop("config", None) or environment.get(f"{source.environment_prefix}CONFIG"), sections, mistakes)
    values: dict[str, dict[str, Any]] = {}
    for section, model in sections.items():
        values[section] = dict(file.get(section, {}))
        for field in model.model_fields:
            variable = environment.get(f"{source.environment_prefix}{field.upper()}")
            if variable is not None:
                values[section][field] = variable
            if given.get(field) is not None:
                values[section][field] = given[field]
    parsed: dict[str, BaseModel] = {}
    for section, model in sections.items():
        try:
            parsed[section] = model.model_validate(values[section])
        except ValidationError as exc:
            mistakes += [_sentence(error) for error in exc.errors()]
    if not mistakes:
        try:
            return config_type.model_validate(parsed)
        except ValidationError as exc:
            mistakes += [_sentence(error) for error in exc.errors()]
    raise ConfigurationError("; ".join(mistakes))


def _parse_flags(sections: dict[str, type[BaseModel]], source: OptionSource, arguments: Sequence[str]) -> dict[str, Any]:
    prefix = source.environment_prefix
    parser = argparse.ArgumentParser(
        prog=source.program,
        description=source.description,
        epilog=f"Every option may also be given in the environment (--run-dir as {prefix}RUN_DIR) or in a TOML file (--config), "
        f"in the table that is its group's name here. Flags win over the environment, the environment over the file. {exit_codes_help()}",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{source.program} {source.version}")
    parser.add_argument("--config", metavar="FILE", help=f"TOML file with options (environment: {prefix}CONFIG)")
    for section, model in sections.items():
        group = parser.add_argument_group(f"[{section}]")
        for name, field in model.model_fields.items():
            _add_flag(group, name, field)
    return vars(parser.parse_args(list(arguments)))


def _add_flag(group: Any, name: str, field: FieldInfo) -> None:
    default = "" if field.default is None or field.default is PydanticUndefined else f" (default: {field.default})"
    text = f"{field.description}{default}".replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(flag_of(name), action="store_const", const=True, help=field.description)
    else:
        group.add_argument(flag_of(name), metavar=_metavar(field.annotation), help=text)


def _metavar(annotation: Any) -> str:
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    return {int: "N", float: "X", Path: "PATH"}.get(annotation, "TEXT")


def _read_file(path: str | None, sections: dict[str, type[BaseModel]], mistakes: list[str]) -> dict[str, dict[str, Any]]:
    if path is None:
        return {}
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        mistakes.append(f"--config {path} cannot be read ({exc})")
        return {}
    for name, table in tables.items():
        if name not in sections or not isinstance(table, dict):
            mistakes.append(f"{path}: unknown table [{name}]: tables are {', '.join(sections)}")
            continue
        mistakes += [f"{path}: unknown option {key!r} in [{name}]" for key in table if key not in sections[name].model_fields]
    return {
        name: {key: value for key, value in table.items() if key in sections[name].model_fields}
        for name, table in tables.items()
        if name in sections and isinstance(table, dict)
    }


def _sentence(error: Any) -> str:
    where = str(error["loc"][0]) if error["loc"] else ""
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{flag_of(where)} is missing"
    came = f", not {error['input']!r}" if where and not isinstance(error["input"], dict | BaseModel) else ""
    return f"{flag_of(where)}: {message}{came}" if where else message

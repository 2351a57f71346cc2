"""Options from three places: flags, then environment variables, then a TOML file, then defaults. All mistakes come at once."""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from heron_common.errors import ConfigurationError
from heron_common.exit_codes import exit_codes_help
from heron_common.terminal.option_parser import OptionParser
from heron_common.terminal.spelling import did_you_mean, own_variables, variable_mistakes
from heron_server.configuration.own_presets import OwnPresets, read_presets
from heron_server.configuration.section import is_common, told

Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True)
class OptionSource:
    """Where options come from: the program's name, the prefix of its variables, its sections in order."""

    program: str
    description: str
    _: KW_ONLY
    environment_prefix: str
    version: str


def flag_of(field: str) -> str:
    """Return the flag of a field: round_deadline_seconds -> --round-deadline-seconds."""
    return f"--{field.replace('_', '-')}"


def sections_of(config_type: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the section models of a configuration, by field name; option names are unique over all of them."""
    annotations = {name: field.annotation for name, field in config_type.model_fields.items()}
    return {name: kind for name, kind in annotations.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def read_options(config_type: type[Config], source: OptionSource, *, arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Read a configuration whose fields are sections of options.

    Raises:
        ConfigurationError: names every unknown or wrong option, each with where it stands and what was expected.

    """
    sections = sections_of(config_type)
    namespace, mistakes = _parser(sections, source).read(arguments)
    given = vars(namespace)
    variables = own_variables(environment)
    known = [_variable(source, field) for model in sections.values() for field in model.model_fields]
    mistakes += variable_mistakes(variables, source.environment_prefix, [*known, _variable(source, "config")])
    path = given.pop("config", None) or variables.get(_variable(source, "config"))
    tables = _read_file(path, mistakes)
    presets = read_presets(tables.pop("presets", {}), str(path), mistakes)
    file = _sections_in(tables, str(path), sections=sections, mistakes=mistakes)
    # A flag without its value is a mistake already.
    flags = {field: value for field, value in given.items() if value is not None and value != []}
    values: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    for section, model in sections.items():
        values[section] = dict(file.get(section, {}))
        places |= {field: f"{path}: {field} in [{section}]" for field in values[section]}
        for field in model.model_fields:
            variable = _variable(source, field)
            if field in flags:
                values[section][field], places[field] = flags[field], flag_of(field)
            elif variable in variables:
                values[section][field], places[field] = variables[variable], variable
    return _validated(config_type, values, presets=presets, places=places, mistakes=mistakes)


def configuration_of(config_type: type[Config], given: Mapping[str, Any]) -> Config:
    """Return a configuration from options by name, which are values or text as after a flag; None is what was not given.

    `presets` stands for the tables of that name in a file.

    Raises:
        ConfigurationError: names every unknown or wrong option.

    """
    sections, mistakes, options = sections_of(config_type), list[str](), dict(given)
    presets = read_presets(options.pop("presets", {}), "presets", mistakes)
    homes = [name for model in sections.values() for name in model.model_fields]
    mistakes += [f"unknown option {name!r}{did_you_mean(name, homes)}" for name in options if name not in homes]
    values = {
        section: {name: options[name] for name in model.model_fields if options.get(name) is not None}
        for section, model in sections.items()
    }
    return _validated(config_type, values, presets=presets, places={}, mistakes=mistakes)


def _validated(
    config_type: type[Config], values: dict[str, dict[str, Any]], *, presets: OwnPresets, places: dict[str, str], mistakes: list[str]
) -> Config:
    parsed: dict[str, BaseModel] = {}
    for section, model in sections_of(config_type).items():
        try:
            parsed[section] = model.model_validate(values[section], context={"presets": presets.names})
        except ValidationError as exc:
            mistakes += [_sentence(error, places) for error in exc.errors()]
    if len(parsed) == len(values):
        try:
            config = config_type.model_validate({**parsed, **presets.fields})
        except ValidationError as exc:
            mistakes += [_sentence(error, places) for error in exc.errors()]
        else:
            if not mistakes:
                return config
    raise ConfigurationError(*mistakes)


def _variable(source: OptionSource, field: str) -> str:
    return f"{source.environment_prefix}{field.upper()}"


def _parser(sections: dict[str, type[BaseModel]], source: OptionSource) -> OptionParser:
    prefix = source.environment_prefix
    parser = OptionParser(
        prog=source.program,
        description=source.description,
        rare=[flag_of(name) for model in sections.values() for name, field in model.model_fields.items() if not is_common(field)],
        epilog=f"Every option may also be given in the environment (--run-dir as {prefix}RUN_DIR) or in a TOML file (--config), "
        f"in the table that is its group's name here. Flags win over the environment, the environment over the file. {exit_codes_help()}",
    )
    parser.add_argument("--version", action="version", version=f"{source.program} {source.version}")
    parser.add_argument("--config", metavar="FILE", help=f"TOML file with options (environment: {prefix}CONFIG)")
    for section, model in sections.items():
        group = parser.add_argument_group(f"[{section}]")
        for name, field in model.model_fields.items():
            _add_flag(group, name, field)
    return parser


def _add_flag(group: Any, name: str, field: FieldInfo) -> None:
    text = f"{field.description}{_default(name, field.default)}".replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(flag_of(name), action="store_const", const=True, help=text)
    elif field.annotation == bool | None:
        # What a preset switches on can be switched off again: --flag, or --flag no.
        group.add_argument(flag_of(name), nargs="?", const=True, metavar="no", help=text)
    else:
        group.add_argument(flag_of(name), metavar=_metavar(field.annotation), help=text)


def _default(name: str, default: Any) -> str:
    if default is None or default is PydanticUndefined or default is False or default == "":
        return ""
    mebibytes = f", {default >> 20} MiB" if name.endswith("bytes") else ""
    return f" (default: {default}{mebibytes})"


def _metavar(annotation: Any) -> str:
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "|".join(str(member.value) for member in annotation)
    return {int: "N", float: "X", Path: "PATH"}.get(annotation, "TEXT")


def _read_file(path: str | None, mistakes: list[str]) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        mistakes.append(f"--config {path} cannot be read ({exc})")
        return {}


def _sections_in(
    tables: dict[str, Any], path: str, *, sections: dict[str, type[BaseModel]], mistakes: list[str]
) -> dict[str, dict[str, Any]]:
    homes = {key: name for name, model in sections.items() for key in model.model_fields}
    known = [*sections, "presets"]
    found: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        if name not in sections or not isinstance(table, dict):
            is_option = name in homes and not isinstance(table, dict)
            near = f": it belongs into [{homes[name]}]" if is_option else did_you_mean(name, known)
            mistakes.append(f"{path}: unknown table [{name}]{near}; tables are {', '.join(known)}")
            continue
        found[name] = {key: value for key, value in table.items() if key in sections[name].model_fields}
        for key in (key for key in table if key not in found[name]):
            near = f": it belongs into [{homes[key]}]" if key in homes else did_you_mean(key, homes)
            mistakes.append(f"{path}: unknown option {key!r} in [{name}]{near}")
    return found


def _sentence(error: Any, places: Mapping[str, str]) -> str:
    field = str(error["loc"][0]) if error["loc"] else ""
    where = places.get(field, flag_of(field))
    if error["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {told(error)}" if field else told(error)

"""Presets of the operator's own: a table of a TOML file names a preset that it begins with, and the options that it replaces."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError, field_validator

from heron_common.algorithm.algorithm import Algorithm
from heron_common.algorithm.presets import PRESETS, preset
from heron_common.terminal.spelling import did_you_mean
from heron_server.configuration.plan_section import PlanSection
from heron_server.configuration.section import checked, told

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class PresetTable(PlanSection):
    """`[presets.NAME]`: a preset to begin with, and options of [plan]."""

    base: str = Field(description="the preset that it begins with")

    @field_validator("base")
    @classmethod
    def _exists(cls, value: str) -> str:
        checked(preset, value)
        return value

    def algorithm(self, name: str) -> Algorithm:
        """Return the preset that the table of this name describes."""
        row = preset(self.base).with_options(self.given)
        return dataclasses.replace(row, plan=dataclasses.replace(row.plan, preset=name))


@dataclass(frozen=True)
class OwnPresets:
    """An operator's own presets: the names of all, so that a wrong table is one mistake and not two, and the tables that are right."""

    names: tuple[str, ...] = ()
    tables: dict[str, PresetTable] = dataclasses.field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """Of a configuration that has them."""
        return {"presets": self.tables} if self.names else {}


def read_presets(tables: Any, place: str, mistakes: list[str]) -> OwnPresets:
    """Return the presets of a file's `presets`, and add a sentence for each mistake."""
    if not isinstance(tables, dict):
        mistakes.append(f"{place}: presets is no table: write [presets.NAME], and below it base and options of [plan]")
        return OwnPresets()
    presets: dict[str, PresetTable] = {}
    for name, table in tables.items():
        where = f"[presets.{name}]"
        if not isinstance(table, dict):
            mistakes.append(f"{place}: {name} in [presets] is no table: write [presets.NAME], and {name} below it")
        elif name in PRESETS:
            mistakes.append(f"{place}: {where} would hide the preset {name!r}: give it another name")
        elif not _NAME.fullmatch(name):
            mistakes.append(f"{place}: {where} is no name of a preset: give up to 64 of a-z, 0-9, - and _, with a letter or digit first")
        else:
            try:
                presets[name] = PresetTable.model_validate(table)
            except ValidationError as exc:
                mistakes += [f"{place}: {_sentence(error, where)}" for error in exc.errors()]
    return OwnPresets(tuple(tables), presets)


def _sentence(error: Any, where: str) -> str:
    field = str(error["loc"][0])
    if error["type"] == "missing":
        return f"base is missing in {where}: name the preset that it begins with, one of {', '.join(PRESETS)}"
    if error["type"] == "extra_forbidden":
        near = did_you_mean(field, PresetTable.model_fields)
        return f"unknown option {field!r} in {where}{near or ': it takes base and options of [plan]'}"
    return f"{field} in {where}: {told(error)}"

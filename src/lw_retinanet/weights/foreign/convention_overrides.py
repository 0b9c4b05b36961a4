"""Conventions that the caller sets instead of the framework's: ``stride_in=1x1``, ``input.size=416``."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from lw_retinanet.config import explain
from lw_retinanet.conventions import Conventions
from lw_retinanet.errors import ConfigError, nearest, quoted, shown
from lw_retinanet.yaml_file import parse_yaml

BACKBONE, WEIGHTS = "backbone", "weights"  # can be set, but are no conventions


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Read texts of the form ``name=value``; of two with the same name the later one counts.

    Raises:
        ConfigError: For a text without ``=`` or without a value.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip() or not text.strip():
            raise ConfigError(f"{quoted(setting)}: expected name=value, for example input.size=416{nearest(key, convention_names())}")
        try:
            values[key.strip()] = parse_yaml(text, where="convention")
        except ConfigError:
            values[key.strip()] = text
    return values


def apply_overrides(conventions: Conventions, overrides: Mapping[str, Any]) -> Conventions:
    """Return the conventions with other values at dotted names; ``backbone`` and ``weights``, which are none, are ignored.

    Raises:
        ConfigError: For an unknown name (the message has the nearest known one), or a value that the field does not accept.
    """
    values = conventions.model_dump()
    for key, value in overrides.items():
        if key in (BACKBONE, WEIGHTS):
            continue
        if key not in convention_names():
            raise ConfigError(f"unknown convention {quoted(key)}{nearest(key, convention_names())}; known: {', '.join(convention_names())}")
        section, _, name = key.rpartition(".")
        place = values[section] if section else values
        if isinstance(value, bool) != isinstance(place[name], bool):  # pydantic reads true as 1
            raise ConfigError(
                f"{key}={shown(value)}: expected {'true or false' if isinstance(place[name], bool) else 'neither true nor false'}"
            )
        place[name] = value
    try:
        return Conventions.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def convention_values(conventions: Conventions) -> dict[str, Any]:
    """The value of each convention by its dotted name."""
    values = conventions.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name in convention_names():
        section, _, inner = name.rpartition(".")
        if name not in (BACKBONE, WEIGHTS):
            found[name] = values[section][inner] if section else values[name]
    return found


def convention_names() -> list[str]:
    """Return every name that can be set, ``backbone`` and ``weights`` first."""
    names = [BACKBONE, WEIGHTS]
    for name, field in Conventions.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += [f"{name}.{inner}" for inner in field.annotation.model_fields]
        else:
            names.append(name)
    return names

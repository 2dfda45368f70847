"""Typed configuration from YAML and the command line, and the shell that every job runs in.

A job is a config class, a `main(config)` and `run(main)`. Its command line is

    python -m jobs.<job> CONFIG [key.sub=value ...]

where CONFIG is a YAML file, or a folder: then `common.yaml` is read first and `<job>.yaml` laid over it. What
`common.yaml` says beyond a job's own keys is ignored by that job if another job knows it, and refused if none does.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ramo_ray import errors
from ramo_ray.errors import ConfigError, RamoError


class Config(BaseModel):
    """Base of every configuration: frozen, rejects unknown keys; a field's docstring is its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class JobConfig(Config):
    """Base of a job's configuration."""

    job: ClassVar[str]
    """The job's name: its file in `jobs/`, its YAML in a folder of configs."""
    common: ClassVar[type[Config]]
    """The keys that mean the same in every job, as one config class."""


C = TypeVar("C", bound=JobConfig)
M = TypeVar("M", bound=Config)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of a truth value and none of a date: `Yes` and `No` are judges' words, `2026-01-31` a folder."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith((":bool", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?:[Tt]rue|TRUE|[Ff]alse|FALSE)$"), list("tTfF"))


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. An empty file is an empty mapping."""
    try:
        value = _parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file or folder. Give a YAML file, or a folder with common.yaml in it."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, but holds a {type(value).__name__}.")
    return value


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Turn `a.b=value` words into a nested mapping; values are read as YAML (`3`, `true`, `[1, 2]`, text)."""
    result: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"`{word}`: an override has the form key=value or key.sub=value.")
        try:
            value = _parse(text)
        except (yaml.YAMLError, ValueError):
            value = text
        result = merge(result, _nest(key.split("."), value))
    return result


def _nest(path: Sequence[str], value: Any) -> dict[str, Any]:
    head, *rest = path
    return {head: _nest(rest, value) if rest else value}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another, key by key; lists and scalars are replaced whole."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def validate(config_class: type[M], values: Mapping[str, Any], origin: str) -> M:
    """Build a config, or raise one `ConfigError` that lists every fault with its key, value and remedy."""
    try:
        return config_class.model_validate(dict(values))
    except ValidationError as error:
        faults = [_fault(config_class, fault) for fault in error.errors()]
        raise ConfigError(f"{origin}: " + "\n  ".join(faults)) from None


def _fault(config_class: type[Config], fault: Mapping[str, Any]) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = _keys_at(config_class, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        remedy = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}."
        return f"unknown key `{key}`; {remedy}"
    if fault["type"] == "missing":
        return f"`{key}` is missing: {_help_at(config_class, path)}"
    where = f"`{key}` = {_short(fault['input'])}" if key else "the values together"
    # YAML reads 12 and true as something else than text.
    hint = " (quote it, as '\"…\"', for text)" if fault["type"] == "string_type" else ""
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}{hint}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _class_at(config_class: type[Config], path: Sequence[str]) -> type[Config] | None:
    for part in (part for part in path if not part.isdigit()):
        field = config_class.model_fields.get(part)
        nested = field and next(iter(_config_classes(field.annotation)), None)
        if nested is None:
            return None
        config_class = nested
    return config_class


def _config_classes(annotation: Any) -> list[type[Config]]:
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in _config_classes(part)]


def _keys_at(config_class: type[Config], path: Sequence[str]) -> list[str]:
    holder = _class_at(config_class, path)
    return sorted(holder.model_fields) if holder else []


def _help_at(config_class: type[Config], path: Sequence[str]) -> str:
    holder = _class_at(config_class, path[:-1])
    field = holder.model_fields.get(path[-1]) if holder else None
    return (field.description or "give a value.") if field else "give a value."


def load_values(config_class: type[JobConfig], source: Path) -> dict[str, Any]:
    """Read a job's values from a YAML file, or from a folder's `common.yaml` and `<job>.yaml`."""
    if not source.is_dir():
        return read_yaml(source)
    own_file, common_file = source / f"{config_class.job}.yaml", source / "common.yaml"
    if not common_file.exists() and not own_file.exists():
        raise ConfigError(f"{source}: has neither common.yaml nor {own_file.name}.")
    common = read_yaml(common_file) if common_file.exists() else {}
    own = read_yaml(own_file) if own_file.exists() else {}
    return merge(keys_for(config_class, common, str(common_file)), own)


def keys_for(config_class: type[JobConfig], common: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Of the common keys, keep those that this job has; refuse a key that no job has."""
    foreign = {key: value for key, value in common.items() if key not in config_class.model_fields}
    validate(config_class.common, foreign, origin)
    return {key: value for key, value in common.items() if key in config_class.model_fields}


def load(config_class: type[C], source: Path, overrides: Sequence[str] = ()) -> C:
    """Build a job's config from a file or folder and `key=value` words."""
    values = merge(load_values(config_class, source), parse_overrides(overrides))
    return validate(config_class, values, str(source))


def describe(config_class: type[Config], prefix: str = "") -> list[tuple[str, str, str]]:
    """List every key as (dotted key, default, help), nested ones after their parent."""
    rows: list[tuple[str, str, str]] = []
    for name, field in config_class.model_fields.items():
        nested = _config_classes(field.annotation)
        default = (
            "required"
            if field.is_required()
            else ""
            if nested
            else _short(field.get_default(call_default_factory=True))
        )
        rows.append((prefix + name, default, " ".join((field.description or "").split())))
        if len(nested) == 1:
            rows += describe(nested[0], f"{prefix}{name}.")
    return rows


def fail(error: BaseException) -> typing.NoReturn:
    """End the process as a `RamoError` asks: its sentence on stderr, its exit status, no traceback."""
    found = find_ramo_error(error)
    if found is None:
        raise error
    print(f"error: {found}", file=sys.stderr)
    raise SystemExit(found.exit_status)


def find_ramo_error(error: BaseException | None) -> RamoError | None:
    """Find our own error inside whatever Ray wrapped around it, or None.

    Only Ray's errors are looked into: one of another type that was raised while ours was handled is a defect.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, RamoError):
            # Ray makes a class of both its error's and ours, whose text is a remote traceback.
            cause = getattr(error, "cause", None)
            return cause if isinstance(cause, RamoError) else error
        if not type(error).__module__.startswith("ray."):
            return None
        inner = getattr(error, "cause", None) or getattr(error, "worker_failures", None)
        if isinstance(inner, Mapping):
            inner = next(iter(inner.values()), None)
        if isinstance(inner, BaseException):
            error = inner
        elif quoted := _quoted_error(str(error)):
            return quoted
        else:
            error = error.__cause__ or error.__context__
    return None


def _quoted_error(traceback: str) -> RamoError | None:
    """Our error, where a traceback's text ends with one: all that Ray keeps of an actor that could not start."""
    name, _, message = traceback.rpartition(f"\n{errors.__name__}.")[2].partition(": ")
    kind = getattr(errors, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, RamoError)) or "\nTraceback (" in message:
        return None
    return kind(message.rstrip())


def run(main: Callable[[C], Sequence[str]], argv: Sequence[str] | None = None) -> None:
    """Be a job's command line: read the config, call `main`, print the next steps that it gives, end honestly."""
    (config_class,) = [t for name, t in typing.get_type_hints(main).items() if name != "return"]
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m jobs.{config_class.job} CONFIG [key.sub=value ...]\n\n{inspect.getdoc(main) or ''}\n")
        for key, default, text in describe(config_class):
            print(f"  {key:<28} {default:<20} {text}")
        raise SystemExit(0 if words else 2)
    finish_with(lambda given: _show_next(main(load(config_class, Path(given[0]), given[1:]))), words)


def _show_next(steps: Sequence[str]) -> None:
    for step in steps:
        print(f"  next: {step}")


def finish_with(main: Callable[[Sequence[str]], None], words: Sequence[str]) -> None:
    """Call `main` with the command line's words; end an interrupt or one of our errors by its message and status."""
    try:
        main(words)
    except KeyboardInterrupt:
        print("interrupted: what is done is kept; run the same command again to continue.", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:  # noqa: BLE001 (what is not ours is raised again)
        fail(error)

"""How configurations work: typed models <-> YAML, dotted overrides, errors that name the nearest key.

A configurable class has its own ``Config`` (a subclass of :class:`Config`); a recipe is a YAML file that describes
a whole run. This module does not know what it configures.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from v2f import recipes
from v2f.errors import V2FError, first_line
from v2f.storage import local as files
from v2f.storage.address import place
from v2f.storage.credentials import has_credentials, without_credentials

T = TypeVar("T")
C = TypeVar("C", bound="Config")
Place = Annotated[str, AfterValidator(place)]
"""A path, prefix or address."""


class _MayChange:
    """The mark that :data:`MayChange` puts on a field."""


MayChange = Annotated[T, _MayChange()]
"""``key: MayChange[int]``: a key that may change when a run resumes, because it affects neither the trained function
nor the order of the samples."""


def default_net(name: str) -> BeforeValidator:
    """For a choice by the key ``net``: a group without it is ``name``, as in recipes from before there was a choice."""
    return BeforeValidator(lambda value: {"net": name, **value} if isinstance(value, Mapping) else value)


class Config(BaseModel):
    """Base of every configuration: frozen, strictly typed, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )


class _YamlLoader(yaml.SafeLoader):
    """YAML's safe subset, with numbers such as ``1e-3`` read as numbers and duplicate keys refused."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


_BARE = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float"))


def _mapping(loader: _YamlLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} appears twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_YamlLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; ``where`` names its source in an error."""
    try:
        return yaml.load(text, Loader=_YamlLoader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise V2FError(f"{where}:{line} not valid YAML ({problem})") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # from PyYAML's constructors of numbers and dates, and from endless nesting
        raise V2FError(f"{where}: not valid YAML ({type(error).__name__}: {error})".splitlines()[0]) from error


def parse_value(text: str, where: str) -> Any:
    """The value of one line that a user typed: a list ``[...]``, a group ``{...}``, a quoted text, or a bare word.

    A bare word is a number, true, false or null if YAML reads it so, else the whole line is text, whatever characters
    (``#``, ``: ``, ``@``, ``*``, ``&``) are in it.
    """
    text = text.strip()
    if not text.startswith(("[", "{", "'", '"')):
        try:
            loader = _YamlLoader(text)
            tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
            if tag not in _BARE or ":" in text:  # else 1:30 would be 90, and a date not a string
                return text
            return loader.construct_document(yaml.ScalarNode(tag, text))  # type: ignore[no-untyped-call]
        except (yaml.YAMLError, ValueError) as error:
            raise V2FError(f"{where}: not valid YAML ({first_line(error)})") from error
    value = parse_yaml(text, where)
    node = yaml.compose(text, Loader=_YamlLoader)
    rest = "" if node is None else text[node.end_mark.index :].strip()
    if rest:
        raise V2FError(f"{where}: {rest!r} after the value would be ignored; put the whole value in quotes")
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        with files.opened(path, "r", encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        hint = recipes.hint(path) if isinstance(error, FileNotFoundError) else ""
        raise V2FError(f"{path}: cannot read this configuration ({why}){hint}") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise V2FError(
            f"{path}: expected a mapping of keys to values, found {type(value).__name__}; write it as key: value lines"
        )
    return value


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """``values`` with ``dotted.key=value`` assignments applied; :func:`parse_value` reads each value."""
    result = _copy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        assignment = without_credentials(assignment)  # from here on for messages only
        if not equals or not key or any(not part for part in key.split(".")):
            raise V2FError(f"{assignment!r}: an override is written dotted.key=value, for example data.batch=32")
        *parents, last = key.split(".")
        node = result
        for i, part in enumerate(parents):
            child = node.setdefault(part, {})
            if child is None:
                child = node[part] = {}
            if not isinstance(child, dict):
                raise V2FError(f"{assignment!r}: {'.'.join(parents[: i + 1])} is a value, not a group of keys")
            node = child
        node[last] = parse_value(text, f"override {assignment!r}")
    return result


def build(cls: type[C], values: Any, where: str, under: str = "") -> C:
    """A ``cls`` from plain values; V2FError names the first wrong key, its file and the nearest right key.

    ``under``: the group of ``cls``, such as ``system.``, which the error puts before the keys.
    """
    _refuse_credentials(values, where, under)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise V2FError(_explain(cls, error, where, under)) from error


def _refuse_credentials(values: Any, where: str, prefix: str) -> None:
    """V2FError if a value contains a password: configurations are copied to the run's folder, checkpoints and tracker.

    An address may contain a user name.
    """
    if isinstance(values, dict):
        for key, value in values.items():
            _refuse_credentials(value, where, f"{prefix}{key}.")
    elif isinstance(values, list):
        for number, value in enumerate(values):
            _refuse_credentials(value, where, f"{prefix}{number}.")
    elif isinstance(values, str) and has_credentials(values):
        raise V2FError(
            f"{where}: {prefix.rstrip('.')}: an address must not contain credentials; set them in the environment: "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) for a tracking "
            "server, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) for s3://, PGPASSWORD for "
            "PostgreSQL"
        )


def dump_yaml(config: Config) -> str:
    """The YAML text from which :func:`build` makes an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted keys to leaf values, as a tracker shows them."""
    return dict(_leaves(config.model_dump(mode="json"), ""))


def fixed_on_resume(config: Config) -> dict[str, Any]:
    """As :func:`flatten`, without the keys that may change when a run resumes (:data:`MayChange`)."""
    free = tuple(_changeable_keys(config, ""))
    return {key: value for key, value in flatten(config).items() if not f"{key}.".startswith(free)}


def _changeable_keys(value: Any, prefix: str) -> Iterator[str]:
    """The dotted keys that may change, each followed by a dot."""
    if isinstance(value, Config):
        for key, field in type(value).model_fields.items():
            if any(isinstance(mark, _MayChange) for mark in field.metadata):
                yield f"{prefix}{key}."
            else:
                yield from _changeable_keys(getattr(value, key), f"{prefix}{key}.")
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _changeable_keys(child, f"{prefix}{key}.")


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value


def _explain(cls: type[Config], error: ValidationError, where: str, under: str) -> str:
    # A default that depends on a wrong key is no mistake of its own.
    problems = [p for p in error.errors(include_url=False) if p["type"] != "default_factory_not_called"]
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in first["loc"]]
    path = _user_path(cls, location)
    dotted = under + ".".join(path) or "the configuration"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        siblings = _keys_at(cls, location[:-1])
        nearest = _nearest(cls, path, siblings)
        hint = f"; did you mean {under + nearest!r}?" if nearest else f"; known keys: {', '.join(sorted(siblings))}"
        return f"{where}: unknown key {dotted!r}{hint}{more}"
    if first["type"] == "missing":
        return f"{where}: the key {dotted!r} is missing{more}"
    if first["type"].startswith("union_tag"):
        tag = f"{dotted}.{first['ctx']['discriminator'].strip(chr(39))}"
        if first["type"] == "union_tag_not_found":
            return f"{where}: the key {tag!r} is missing{more}"
        return f"{where}: {tag}: unknown value {first['ctx']['tag']!r}; known: {first['ctx']['expected_tags']}{more}"
    message = first["msg"][:1].lower() + first["msg"][1:]
    message = message.removeprefix("value error, ")
    if isinstance(first["input"], dict) and first["type"] == "value_error":  # about a group: the message names its keys
        return f"{where}: {dotted.rstrip('.')}: {message}{more}"
    shown = repr(first["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{where}: {dotted}: {message}, got {shown} ({type(first['input']).__name__}){more}"


def _nearest(cls: type[Config], path: list[str], siblings: list[str]) -> str | None:
    """The nearest dotted key: among the siblings, else anywhere below ``cls``."""
    close = difflib.get_close_matches(path[-1], siblings, 1, 0.6)
    if close:
        return ".".join([*path[:-1], close[0]])
    everywhere = {dotted: key for dotted, key in _all_keys(cls, "") if dotted != ".".join(path)}
    for dotted, key in everywhere.items():
        if key == path[-1]:
            return dotted
    close = difflib.get_close_matches(".".join(path), list(everywhere), 1, 0.75)
    return close[0] if close else None


def _submodels(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from _submodels(argument)


def _keys_at(cls: type[Config], location: Sequence[str]) -> list[str]:
    return [key for model in _models_at(cls, location) for key in model.model_fields]


def _models_at(cls: type[Config], location: Sequence[str]) -> list[type[Config]]:
    """The models that a pydantic location may refer to; besides keys it contains indices and tags of unions."""
    models = [cls]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        tagged = [m for m in models if any(part in get_args(field.annotation) for field in m.model_fields.values())]
        models = [m for field in fields for m in _submodels(field.annotation)] or tagged or models
    return models


def _user_path(cls: type[Config], location: Sequence[str]) -> list[str]:
    """A location as the user wrote it, without tags of unions and names of validators."""
    path = []
    for at, part in enumerate(location):
        last = at == len(location) - 1
        models = _models_at(cls, location[:at])
        tag = any(part in get_args(field.annotation) for model in models for field in model.model_fields.values())
        if (
            (at and _is_dict(cls, location[:at]))
            or part in _keys_at(cls, location[:at])
            or part.isdigit()
            or (last and not tag and "-" not in part)
        ):
            path.append(part)
    return path


def _is_dict(cls: type[Config], location: Sequence[str]) -> bool:
    """Whether the last key of a location is a mapping whose keys the user chooses."""
    fields = [model.model_fields.get(location[-1]) for model in _models_at(cls, location[:-1])]
    kinds = [kind for field in fields if field for kind in (field.annotation, *get_args(field.annotation))]
    return any(get_origin(kind) is dict for kind in kinds)


def _all_keys(cls: type[Config], prefix: str) -> Iterator[tuple[str, str]]:
    for key, field in cls.model_fields.items():
        yield prefix + key, key
        for model in _submodels(field.annotation):
            yield from _all_keys(model, f"{prefix}{key}.")

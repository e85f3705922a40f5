"""Command-line flags from config.py: one for every field of a settings model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from amvlm.errors import UserError

_Model = TypeVar("_Model", bound=BaseModel)


def _flat_fields(model: type[BaseModel]) -> Iterator[tuple[str, str, FieldInfo]]:
    """(settings group or "", field name, field), nested settings flattened; a name that is taken gets its group's."""
    seen: set[str] = set()
    nested = []
    for name, info in model.model_fields.items():
        if inspect.isclass(info.annotation) and issubclass(info.annotation, BaseModel):
            nested.append((name, info.annotation))
        else:
            seen.add(name)
            yield "", name, info
    for group, kind in nested:
        for name, info in kind.model_fields.items():
            yield group, name, info


def with_settings(model: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a flag for every field of a settings model, and hand the command the validated ``settings``."""
    fields = {(f"{group}_{name}" if group and name in model.model_fields else name): (group, name, info)
              for group, name, info in _flat_fields(model)}  # fmt: skip

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
        flags = [_flag(flag, info) for flag, (_, _, info) in fields.items()]

        def run(**given: Any) -> None:
            values: dict[str, Any] = {}
            for flag, (group, name, _) in fields.items():
                value = given.pop(flag)
                if value is not None and value != []:
                    (values.setdefault(group, {}) if group else values)[name] = value
            command(**given, settings=validated(model, values))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        return run

    return decorate


def _flag(flag: str, info: FieldInfo) -> inspect.Parameter:
    default = info.get_default(call_default_factory=True)
    help_ = f"{info.title}{': ' + info.description if info.description else ''} [{_shown(default)}]"
    kind: Any = info.annotation
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        kind = list[get_args(part)[0] if get_origin(part) is Annotated else part]  # type: ignore[misc]
    name = flag.replace("_", "-")
    names = f"--{name}/--no-{name}" if kind is bool else f"--{name}"
    option = typer.Option(names, help=help_, show_default=False)
    return inspect.Parameter(
        flag, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def validated(model: type[_Model], values: dict[str, Any]) -> _Model:
    """Settings from what a person gave.

    Raises
    ------
    UserError
        Naming the flag and its range.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings together
            raise UserError(first["msg"].removeprefix("Value error, "), remedy="See --help.") from error
        name = "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise UserError(f"--{name}: {first['msg']}", remedy="See --help for the range.") from error

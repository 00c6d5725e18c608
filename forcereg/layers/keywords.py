"""A layer's options as keyword arguments of a user's torch.nn.Module, and those that a user's Layer reads.

The fields of every message of parameters in the layer become keywords, whatever the message is called, and so do
loose fields and python_param's param_str: `permute_param { order: 0 order: 2 }` is `Permute(order=[0, 2])`. A message
whose own name is a keyword of the class goes there whole, as a dict.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from forcereg.layers.base import Layer
from forcereg.schema import LayerParameter
from forcereg.schema.foreign import own_names
from forcereg.schema.scan import shown
from forcereg.schema.spec import LayerSpec


def given_keywords(spec: LayerSpec, module_class: type) -> dict[str, Any]:
    """The layer's options as keyword arguments of the class.

    A field that stands there once is one value, unless the keyword is annotated as a list or tuple or has one as its
    default; one that stands there several times is a list. Raises ForceregError for a keyword that the class
    doesn't take, or that is given twice.
    """
    taken = _keywords(module_class)
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, key, value in _all_options(spec, taken):
        if key in found:
            raise spec.fail(f"'{key}' is given in {origins[key]} and in {origin}; remove one")
        if taken is not None and key not in taken:
            raise spec.fail(
                f"'{shown(key)}' (in {origin}) is no keyword of {module_class.__name__}; it takes "
                f"{', '.join(taken) or 'none'}"
            )
        origins[key] = origin
        found[key] = _fitted(value, (taken or {}).get(key)) if origin != _PARAM_STR else value
    return found


_PARAM_STR = "param_str"


def _all_options(spec: LayerSpec, taken: Mapping[str, inspect.Parameter] | None) -> Iterable[tuple[str, str, Any]]:
    """Where each keyword is given, its name and value."""
    for key, value in _param_str(spec).items():
        yield _PARAM_STR, key, value
    for name, value in spec.options.items():
        if isinstance(value, dict) and not (taken and name in taken):
            for key, inner in value.items():
                yield name, key, inner
        else:
            yield "the layer", name, value


def _keywords(module_class: type) -> Mapping[str, inspect.Parameter] | None:
    """The keywords that a class takes, with what they expect; None if it takes any, or nobody knows."""
    try:
        parameters = dict(inspect.signature(module_class).parameters)
    # classes of C have no signature to look at
    except (TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return None
    named = (one for one in parameters.values() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY))
    names = vars(sys.modules.get(module_class.__module__, typing))
    return {one.name: one.replace(annotation=_resolved(one.annotation, names)) for one in named}


def _resolved(annotation: Any, names: Mapping[str, Any]) -> Any:
    """An annotation that is text as what it names in its module, itself where that isn't there."""
    if not isinstance(annotation, str):
        return annotation
    # get_type_hints takes no annotation by itself, but what has some
    holder = type("_Holder", (), {"__annotations__": {"it": annotation}})
    try:
        return typing.get_type_hints(holder, dict(names))["it"]
    except Exception:  # users' annotations may name anything
        return annotation


def _fitted(value: Any, keyword: inspect.Parameter | None) -> Any:
    """A single value as a list for a keyword that wants one, a list of one value as that value for others."""
    wants = keyword is not None and (isinstance(keyword.default, list | tuple) or _is_list(keyword.annotation))
    if isinstance(value, list):
        return value[0] if len(value) == 1 and not wants else value
    return [value] if wants else value


def _is_list(annotation: Any) -> bool:
    """Whether an annotation allows lists or tuples, and no single values."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        # None is what the default may be: it says nothing of what is given
        some = [one for one in typing.get_args(annotation) if one is not type(None)]
        return all(map(_is_list, some))
    kind = origin or annotation
    return isinstance(kind, type) and issubclass(kind, Collection) and not issubclass(kind, str | bytes | Mapping)


def _param_str(spec: LayerSpec) -> dict[str, Any]:
    """python_param.param_str as keyword arguments: a JSON or Python dict, empty for none. Raises ForceregError."""
    text = spec.message.python_param.param_str.strip()
    if not text:
        return {}
    # JSON first: its true, false and null are no Python
    for read in (json.loads, ast.literal_eval):
        try:
            keywords = read(text)
        # the latter two: literal_eval gives up so on deep nesting
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(keywords, dict) and all(isinstance(key, str) for key in keywords):
            return keywords
    raise spec.fail(
        f"param_str is '{text[:80]}'; expected a module's keyword arguments as a JSON or Python dict, "
        "as in '{\"kernel_size\": 3}'"
    )


def check_declared(spec: LayerSpec, cls: type[Layer], params: Iterable[str]) -> None:
    """Raises ForceregError for an own field of a layer that its `Layer` class doesn't say it reads.

    `params` as they were registered: nobody else would notice a misspelt one.
    """
    # "its_param" reads all of the message's fields, "its_param.this,that" these
    known = {name: set(some.split(",")) - {""} for name, _, some in (param.partition(".") for param in params)}
    for own in own_names(spec.message):
        name, _, inner = own.partition(".")
        caffes = name in LayerParameter.DESCRIPTOR.fields_by_name
        some = known.get(name)
        if some is None or (inner and inner not in some and (some or caffes)):
            told = own if caffes or some else name
            raise spec.fail(
                f"'{shown(told)}' is no field of Caffe's, and {cls.__name__} doesn't say that it reads it; register it "
                f'by forcereg.layer("{spec.type}", params="{shown(told)}")'
            )

"""Fields of a prototxt that Caffe's schema lacks: those of own layers are kept, those of forks without effect skipped.

A layer whose type isn't Caffe's, or is Python, may have any fields: they go, as text, into the layer's `own_fields`.
Known messages in which Caffe would not know all go there whole. Everything else that the schema lacks stays in
the text, for its parser to refuse.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from google.protobuf import text_format

from forcereg import schema
from forcereg.errors import slip
from forcereg.schema import LayerParameter, forks
from forcereg.schema.fields import Block, Field, message_values, plain, read_fields, written
from forcereg.schema.types import BUILT_IN

M = TypeVar("M")

OWN = "own_fields"
"""The field of a LayerParameter that keeps them."""
STRUCTURE = frozenset({"param", "blobs", "include", "exclude", "name", "type", "bottom", "top", "phase"})
STRUCTURE |= {"loss_weight", "propagate_down", "python_param", "display", "connectivity_mode"}
"""Fields of a layer that are no options of its kind: they are Caffe's in every type."""
CAFFES = frozenset(
    field.name
    for name in schema.__all__
    if hasattr(getattr(schema, name), "DESCRIPTOR")
    for field in getattr(schema, name).DESCRIPTOR.fields
)
"""The names of all fields of Caffe's."""
_NAME = re.compile(r"(?<!\w)[A-Za-z_]\w*+(?=\s*+[:{<])")
_NEVER = frozenset({"layer", "layers", "blobs_lr", "weight_decay", "blob_share_mode", OWN})
"""Of another format, of a layer that isn't closed, or ours: no type's own."""
# short names are a slip away from too many words
_MISSPELT = sorted(name for name in STRUCTURE if len(name) > 4)

Path = tuple[tuple[str, int], ...]
"""From a message down to another: names of fields, and which of several."""


@dataclass
class Foreign:
    """`text` without what is foreign, every line and column where it was; what that is.

    `own`: the fields of layers, by their places. `skipped`: fork -> fields of its that mean nothing here.
    `broken`: where a field of its own in a layer is no prototxt, None if all are; `begins`: where that field does.
    """

    text: str
    own: list[tuple[Path, str]] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    broken: int | None = None
    begins: int = 0


def parsed(text: str, kind: Callable[[], M]) -> tuple[M, text_format.ParseError | None, Foreign]:
    """The text as a message, without what is foreign; the error where it is none.

    Long texts in which all names are Caffe's are not searched for what is foreign, unless they are refused.
    """
    # one search for names is much faster than reading the fields of a text of megabytes
    foreign, searched = Foreign(text), not CAFFES.issuperset(_NAME.findall(text))
    descriptor = cast(Any, kind()).DESCRIPTOR
    if searched:
        foreign = separate(text, descriptor)
    message, error = _merged(foreign.text, kind)
    # a name of Caffe's may be foreign where it stands: then the text is searched after all
    if error is not None and not searched:
        foreign = separate(text, descriptor)
        message, error = _merged(foreign.text, kind) if foreign.text != text else (message, error)
    return message, error, foreign


def _merged(text: str, kind: Callable[[], M]) -> tuple[M, text_format.ParseError | None]:
    message = kind()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        return message, error
    return message, None


def separate(text: str, descriptor: Any) -> Foreign:
    """The foreign fields of a text that is to be a message of `descriptor`."""
    fields, broken = read_fields(text)
    found, spans = Foreign(text), list[Field]()
    _skip(fields, descriptor, found, spans)
    _keep(fields, descriptor, (), found, spans, broken)
    pieces, done = [], 0
    for one in sorted(spans, key=lambda one: one.at):
        if one.at < done:  # in another one
            continue
        # blanks, so that the parser's lines and columns are the file's
        pieces += [text[done : one.at], re.sub(r"[^\n]", " ", text[one.at : one.end])]
        done = one.end
    found.text = "".join([*pieces, text[done:]])
    return found


def _skip(fields: list[Field], kind: Any, found: Foreign, spans: list[Field]) -> None:
    """Takes out of the fields of a message, and of those in it, what forks have without effect here."""
    kept = []
    for one in fields:
        known = kind.fields_by_name.get(one.name)
        # end 0: it breaks off inside, which is the parser's to tell
        odd = one.end and (known is None or _is_odd_value(one, known))
        values = [scalar.text.strip("\"'") for scalar in one.scalars]
        if fork := forks.without_effect(kind.name, one.name, values) if odd else "":
            names = found.skipped.setdefault(fork, [])
            names += [one.name] * (one.name not in names)
            spans.append(one)
            continue
        if known is not None and known.message_type is not None:
            for block in one.blocks:
                _skip(block.fields, known.message_type, found, spans)
        kept.append(one)
    fields[:] = kept


def _keep(fields: list[Field], kind: Any, path: Path, found: Foreign, spans: list[Field], broken: int | None) -> None:
    """Takes the own fields of the layers in a message at `path`."""
    own = kind.name == "LayerParameter" and has_own(fields)
    counts = Counter[str]()
    for one in fields:
        known = kind.fields_by_name.get(one.name)
        if own:
            if _is_own(one, known) and one.end:
                found.own.append((path, written([one])))
                spans.append(one)
            elif _is_own(one, known):
                found.broken, found.begins = broken, one.at
        elif known is not None and known.message_type is not None:
            for block in one.blocks:
                _keep(block.fields, known.message_type, (*path, (one.name, counts[one.name])), found, spans, broken)
                counts[one.name] += 1


def has_own(fields: Sequence[Field]) -> bool:
    """Whether a layer with these fields may have some of its own, by its type."""
    types = [scalar.text.strip("\"'") for one in fields if one.name == "type" for scalar in one.scalars]
    return bool(types) and (types[0] not in BUILT_IN or types[0] == "Python")


def _is_own(one: Field, known: Any) -> bool:
    if one.name in STRUCTURE or one.name in _NEVER:
        return False
    # an own layer may have any field, but a misspelt `bottom` is meant as Caffe's
    if known is None:
        return not slip(one.name, _MISSPELT)
    return any(True for block in one.blocks for _ in _odd(block, known.message_type))


def _odd(block: Block, kind: Any) -> Iterator[str]:
    """What of a message Caffe's schema lacks, with dots before what is in messages in it."""
    for one in block.fields:
        known = kind.fields_by_name.get(one.name)
        if known is None or _is_odd_value(one, known):
            yield one.name
        elif known.message_type is not None:
            for inner in one.blocks:
                yield from (f"{one.name}.{odd}" for odd in _odd(inner, known.message_type))


def _is_odd_value(one: Field, known: Any) -> bool:
    """Whether it is an enum's value that Caffe hasn't."""
    return known.enum_type is not None and any(
        # numbers are enums' values, too, in protobuf's text
        scalar.text.strip("\"'") not in known.enum_type.values_by_name and not scalar.text[:1].isdigit()
        for scalar in one.scalars
    )


def put_back(message: Any, own: Sequence[tuple[Path, str]]) -> None:
    """Gives the layers in `message` their own fields."""
    texts: dict[Path, list[str]] = {}
    for path, text in own:
        texts.setdefault(path, []).append(text)
    for path, found in texts.items():
        layer = message
        for name, index in path:
            inner = getattr(layer, name)
            layer = inner[index] if hasattr(inner, "add") else inner
        setattr(layer, OWN, "".join(found))  # at once: what a message's string was before stays in its memory


def layer_options(layer: Any) -> dict[str, Any]:
    """Every option of a layer as Python values, Caffe's messages and its own alike: see forcereg.schema.fields.plain.

    `{"convolution_param": {"num_output": 3, "kernel_size": [3]}, "permute_param": {"order": [0, 2]}, "alpha": 0.5}`
    Raises ValueError for a string of its own that isn't UTF-8.
    """
    values = {name: value for name, value in message_values(layer).items() if name not in STRUCTURE and name != OWN}
    fields, _ = read_fields(getattr(layer, OWN))
    own = plain(fields, LayerParameter.DESCRIPTOR)
    return values | own


def own_names(layer: Any) -> list[str]:
    """What of a layer Caffe's schema lacks: 'permute_param.order', 'image_data_param.label_type', 'alpha'."""
    names: dict[str, None] = {}
    fields, _ = read_fields(getattr(layer, OWN))
    for one in fields:
        kind = LayerParameter.DESCRIPTOR.fields_by_name.get(one.name)
        known = kind.message_type if kind is not None else None
        inner = [odd for block in one.blocks for odd in (_odd(block, known) if known else _names(block))]
        names.update(dict.fromkeys([f"{one.name}.{odd}" for odd in inner] or [one.name]))
    return list(names)


def _names(block: Block) -> list[str]:
    return [one.name for one in block.fields]

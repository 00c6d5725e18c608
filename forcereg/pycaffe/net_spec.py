"""Nets written in Python: `L.Convolution(bottom, num_output=20, kernel_size=5)` and a NetSpec that names the tops.

    from caffe import layers as L, params as P

    n = caffe.NetSpec()
    n.data, n.label = L.Data(source="train_lmdb", backend=P.Data.LMDB, batch_size=64, ntop=2)
    n.ip = L.InnerProduct(n.data, num_output=10, weight_filler=dict(type="xavier"))
    n.loss = L.SoftmaxWithLoss(n.ip, n.label)
    print(n.to_proto())

A layer takes the name of its first top, and its keywords go where Caffe's schema has fields of their names: into the
type's own message (`num_output` into `convolution_param`), or into the layer (`name`, `loss_weight`, `include`, and all
that end in `param`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor

from forcereg.pycaffe.proto import caffe_pb2

_WHOLE = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}
"""Kinds of fields that hold whole numbers."""


def param_name_dict() -> dict[str, str]:
    """Layer type -> the field of LayerParameter that holds its options, without `_param`; for types that have one.

    Found by the messages' names: type Convolution has ConvolutionParameter, which is the field `convolution_param`.
    """
    fields = caffe_pb2.LayerParameter.DESCRIPTOR.fields
    named = [field for field in fields if field.name.endswith("_param") and field.message_type is not None]
    return {field.message_type.name.removesuffix("Parameter"): field.name.removesuffix("_param") for field in named}


_param_names = param_name_dict()


def to_proto(*tops: Top) -> Any:
    """A NetParameter of all layers that the tops need, each once, behind those that it reads; names are counted.

    Raises AttributeError for a keyword that is no field, TypeError or ValueError for a value that its field can't take.
    """
    return _net([(None, top) for top in tops])


def assign_proto(proto: Any, name: str, val: Any) -> None:
    """Sets field `name` of a message as net specifications have it.

    A repeated field takes a list, tuple or array, or one value; of dicts each becomes a message. A dict fills a message
    field by field. Anything else is assigned, 32.0 to a whole number too. Raises AttributeError for no such field,
    IndexError for an empty list, and protobuf's TypeError or ValueError.
    """
    field = getattr(proto, name, None)
    if field is None:
        raise AttributeError(f"'{proto.DESCRIPTOR.name}' object has no attribute '{name}'")
    if hasattr(field, "extend"):
        if isinstance(val, np.ndarray):
            val = val.tolist()
        val = list(val) if isinstance(val, list | tuple) else [val]
        if not isinstance(val[0], dict):
            field.extend(_plain(proto, name, one) for one in val)
            return
        for item in val:
            _fill(field.add(), item)
    elif isinstance(val, dict):
        _fill(field, val)
    else:
        setattr(proto, name, _plain(proto, name, val))


def _plain(proto: Any, name: str, val: Any) -> Any:
    """A value as protobuf takes it: no numpy.bool_, and for a whole number no float, which 64 / 2 is in Python 3."""
    if isinstance(val, np.bool_):
        return bool(val)
    if isinstance(val, float | np.floating) and val.is_integer():
        return int(val) if proto.DESCRIPTOR.fields_by_name[name].cpp_type in _WHOLE else val
    return val


def _fill(message: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        assign_proto(message, name, value)


class Top:
    """One output of a layer: number `n` of those of `fn`."""

    def __init__(self, fn: Function, n: int) -> None:
        self.fn = fn
        self.n = n

    def to_proto(self) -> Any:
        """A NetParameter of this top's layer and all that it needs."""
        return to_proto(self)


class Function:
    """A layer: its type, the tops that it reads, its options, and `ntop` tops of its own.

    Raises TypeError for an input that is no Top.
    """

    def __init__(self, type_name: str, inputs: Iterable[Top], params: dict[str, Any]) -> None:
        self.type_name = type_name
        self.inputs = tuple(inputs)
        for index, one in enumerate(self.inputs):
            if not isinstance(one, Top):
                raise TypeError(f"{type_name} input {index} is not a Top (type is {type(one)})")
        self.params = dict(params)
        self.ntop = self.params.pop("ntop", 1)
        self.in_place = self.params.pop("in_place", False)
        self.tops = tuple(Top(self, n) for n in range(self.ntop))


class NetSpec:
    """A net in the making: tops, or layers without any, by the names that were assigned, in that order.

    Reading a name that wasn't assigned raises KeyError.
    """

    tops: OrderedDict[str, Any]

    def __init__(self) -> None:
        super().__setattr__("tops", OrderedDict())

    def __setattr__(self, name: str, value: Any) -> None:
        self.tops[name] = value

    def __getattr__(self, name: str) -> Any:
        # or copying and notebooks would stumble over the methods that they ask for
        if name.startswith("__") or name == "tops":
            raise AttributeError(name)
        return self.tops[name]

    def __setitem__(self, key: str, value: Any) -> None:
        self.tops[key] = value

    def __getitem__(self, item: str) -> Any:
        return self.tops[item]

    def to_proto(self) -> Any:
        """The NetParameter: what was assigned, in that order, each layer behind those that it reads.

        Raises as `to_proto`, and AttributeError where a layer's several tops were assigned to one name.
        """
        return _net(list(self.tops.items()))


class _Made:
    """The layers of a net so far, and the names that they and their tops have."""

    def __init__(self, named: Iterable[tuple[str | None, Any]]) -> None:
        self.names = {one: name for name, one in named if name is not None}
        self.counted: Counter[str] = Counter()
        self.layers: dict[Function, Any] = {}

    def add(self, fn: Function) -> None:
        """Makes a layer and, depth first, those that it reads; a loop, because nets are deeper than Python's stack."""
        waiting = [fn]
        while waiting:
            fn = waiting[-1]
            missing = next((top.fn for top in fn.inputs if top.fn not in self.layers), None)
            if missing is not None:
                waiting.append(missing)
                continue
            waiting.pop()
            if fn not in self.layers:
                self.layers[fn] = self._layer(fn)

    def _layer(self, fn: Function) -> Any:
        bottoms = [self.layers[top.fn].top[top.n] for top in fn.inputs]
        layer = caffe_pb2.LayerParameter(type=fn.type_name, bottom=bottoms)
        tops = [self._name(top, fn) for top in fn.tops]
        layer.top.extend(bottoms if fn.in_place else tops)
        layer.name = tops[0] if tops else self._name(fn, fn)
        for key, value in fn.params.items():
            _place(layer, fn.type_name, key, value)
        return layer

    def _name(self, one: Top | Function, fn: Function) -> str:
        if one not in self.names:
            self.counted[fn.type_name] += 1
            self.names[one] = f"{fn.type_name}{self.counted[fn.type_name]}"
        return self.names[one]


def _place(layer: Any, type_name: str, key: str, value: Any) -> None:
    """Sets one of a layer's keywords, in the type's own message if that has such a field."""
    if not key.endswith("param") and type_name in _param_names:
        own = getattr(layer, f"{_param_names[type_name]}_param")
        try:
            assign_proto(own, key, value)
            return
        except AttributeError:
            pass
    assign_proto(layer, key, value)


def _net(named: list[tuple[str | None, Any]]) -> Any:
    made = _Made(named)
    for _, one in named:
        made.add(one if isinstance(one, Function) else one.fn)
    return caffe_pb2.NetParameter(layer=made.layers.values())


class Layers:
    """`layers.X(*bottoms, **options)` is a layer of type X, whatever X: its Top, a tuple of `ntop` of them, or for
    `ntop=0` the Function."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def layer_fn(*args: Top, **kwargs: Any) -> Any:
            fn = Function(name, args, kwargs)
            return (fn, fn.tops[0] if fn.tops else None, fn.tops)[min(fn.ntop, 2)]

        return layer_fn


class Parameters:
    """`params.X.Y` is the value Y of an enum in message XParameter: `params.Pooling.MAX`.

    Raises AttributeError, for X too, when Y is asked for.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Enums(name)


class _Enums:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(getattr(caffe_pb2, f"{self._name}Parameter"), name)


layers = Layers()
params = Parameters()

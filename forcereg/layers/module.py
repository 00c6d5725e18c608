"""torch.nn.Modules as layers, and layer types of the users' own.

    forcereg.layer("Mish")(torch.nn.Mish)

registers a torch.nn.Module or `Layer` class as a layer type; `forcereg train --import mylayers` imports the module
that holds this line. A registered torch.nn.Module is made with the layer's options as keyword arguments: see
forcereg.layers.keywords.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from forcereg import registry
from forcereg.errors import ForceregError, UserCodeError
from forcereg.layers.base import Layer, Shape
from forcereg.layers.keywords import given_keywords
from forcereg.schema import TRAIN
from forcereg.schema.spec import LayerSpec
from forcereg.schema.types import unknown_type
from forcereg.system import plugins

C = TypeVar("C", bound=type[nn.Module])


def layer(name: str, params: str = "", limits: str = "") -> Callable[[C], C]:
    """Registers a `Layer` or any torch.nn.Module class as layer type `name`: a decorator, or called with the class.

    `params` (LayerParameter fields it reads, space separated; `its_param` or `its_param.this,that` for a `Layer`'s own,
    which it finds in `spec.options`) and `limits` are shown by `forcereg layers`.
    Raises ForceregError for anything else, ValueError for a type that is there already.

    >>> import torch
    >>> forcereg.layer("Mish")(torch.nn.Mish)
    <class 'torch.nn...Mish'>
    >>> net = forcereg.load_net('''layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
    ...     layer { name: "y" type: "Mish" bottom: "x" top: "y" }''')
    >>> net(x=torch.zeros(1, 3))["y"]
    tensor([[0., 0., 0.]])
    """

    def register(cls: C) -> C:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            what = cls.__name__ if isinstance(cls, type) else f"of type {type(cls).__name__}"
            raise ForceregError(f"layer type '{name}' is {what}; expected a torch.nn.Module or forcereg.Layer class")
        if issubclass(cls, Layer):
            registry.layer(name, params, limits)(cls)
        else:
            made = type(cls.__name__, (ModuleLayer,), {"__doc__": cls.__doc__, "module_class": cls})
            registry.layer(name, params or "python_param.param_str", limits)(made)
        return cls

    return register


def layer_class(spec: LayerSpec) -> type[Layer]:
    """The class registered for the layer's type, if need be by an installed package. Raises ForceregError."""
    if spec.type not in registry.layer:
        point = plugins.entry_point_layers().get(spec.type)
        if point is None:
            raise spec.fail(unknown_type(spec.type))
        try:
            found = plugins.load(point)
            if spec.type not in registry.layer:  # importing it may have registered it
                layer(spec.type)(found)
        except ForceregError as error:
            raise spec.fail(str(error)) from error
    return registry.layer.get(spec.type)


@contextmanager
def user_code(spec: LayerSpec, what: str, file: str | None = None) -> Iterator[None]:
    """Turns an exception of the user's code, called `what`, into one line that opens with the layer."""
    try:
        yield
    except (ForceregError, torch.OutOfMemoryError):
        raise
    # a module that calls sys.exit would else end the run without a word
    except (Exception, SystemExit) as error:
        raise UserCodeError(str(spec.fail(f"{what} raised {plugins.told(error, file)}"))) from error


@contextmanager
def _on_trial() -> Iterator[None]:
    """Without gradients, and without warnings, which are told when the module runs."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


class ModuleLayer(Layer):
    """A torch.nn.Module of the users' own as a layer, with autograd's gradient.

    Its blobs are the module's parameters, then its saved floating-point buffers (running statistics), each in
    the module's own order; their first values are the module's.
    """

    bottoms = (0, None)
    tops = (1, None)
    module_class: ClassVar[type[nn.Module]]

    @classmethod
    def build(cls, spec: LayerSpec, shapes: Sequence[Shape]) -> Layer:
        """A plain ModuleLayer: classes made when a type is registered could not be pickled."""
        return ModuleLayer(spec, shapes, cls.module_class)

    def __init__(self, spec: LayerSpec, shapes: Sequence[Shape], module_class: type[nn.Module]) -> None:
        super().__init__(spec, shapes)
        self.title = module_class.__name__
        self.inner = self._make(module_class)
        # keep_vars: or parameters would come as plain tensors
        saved = self.inner.state_dict(keep_vars=True).items()
        self.blob_names = [name for name, _ in self.inner.named_parameters()]
        self.blob_names += [
            name
            for name, value in saved
            # counters, such as BatchNorm's batches, are integers, and blobs hold floats
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_floating_point()
        ]
        self.fillers = [None] * len(self.blob_names)
        for name, blob in zip(self.blob_names, self.blobs, strict=True):
            if is_lazy(blob):
                raise spec.fail(f"{self.title} leaves the size of its parameter '{name}' open; give it as a keyword")
            spec.check_size(f"blob '{name}'", blob.shape)
        self._shapes = tuple(shapes)
        self.out_shapes = self._try_out(module_class)
        self.capturable = module_class.__module__.startswith("torch.nn.")  # of others nobody knows

    def _make(self, module_class: type[nn.Module]) -> nn.Module:
        keywords = given_keywords(self.spec, module_class)
        shown = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        with user_code(self.spec, f"{self.title}({shown})"):
            try:
                made = module_class(**keywords)
            except Exception:
                if torch.empty(0).device.type != "meta":  # get_default_device knows of no contexts before torch 2.8
                    raise
                with torch.device("cpu"):  # it computes with values while it is made
                    made = module_class(**keywords).to("meta")
            return made.train(self.spec.phase == TRAIN)

    def _try_out(self, module_class: type[nn.Module]) -> tuple[Shape, ...]:
        """The shapes that the module returns: run without memory if it allows that, else a second one on zeros."""
        with _on_trial():
            try:
                found = self._on_sizes()
            except Exception:
                # what is drawn on trial isn't taken from the net's own sequence
                with torch.device("cpu"), torch.random.fork_rng(devices=[]), user_code(self.spec, self._called):
                    # of a second one, because a forward may change statistics
                    found = self._make(module_class)(*map(torch.zeros, self._shapes))
        return tuple(tuple(top.shape) for top in self._tops(found))

    def _on_sizes(self) -> Any:
        """What the module returns for sizes alone, of which most need no more to tell theirs."""
        tensors = {**dict(self.inner.named_parameters()), **dict(self.inner.named_buffers())}
        with torch.device("meta"):
            state = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
            return torch.func.functional_call(self.inner, state, tuple(map(torch.empty, self._shapes)))

    @cached_property
    def macs(self) -> int:  # type: ignore[override]  # assigned by none
        """Multiply-accumulates of one batch as torch counts them; 0 for a module that needs values."""
        # not before somebody asks: it loads torch's compiler, for two seconds
        from torch.utils.flop_counter import FlopCounterMode

        flops = FlopCounterMode(display=False)
        try:
            with _on_trial(), flops:
                self._on_sizes()
        except Exception:
            return 0
        # a multiplication and an addition are two of them
        return int(flops.get_total_flops() // 2)

    @property
    def _called(self) -> str:
        return f"{self.title}.forward"

    @property
    def blobs(self) -> tuple[Tensor, ...]:
        """The blobs: the module's parameters, then its buffers."""
        return tuple(getattr(*self._place(name)) for name in self.blob_names)

    def _place(self, blob: str) -> tuple[nn.Module, str]:
        path, _, name = blob.rpartition(".")
        return self.inner.get_submodule(path), name

    def share_blob(self, index: int, owner: Tensor) -> None:
        """Makes blob `index` the very tensor `owner`, wherever the module holds it. Raises ForceregError if unlike."""
        blob = self.blobs[index]
        if blob.shape != owner.shape or isinstance(blob, nn.Parameter) != isinstance(owner, nn.Parameter):
            raise self.spec.fail(
                f"blob {index} ('{self.blob_names[index]}', {list(blob.shape)}) of {self.title} cannot be shared "
                f"with one of shape {list(owner.shape)}; both must be parameters of one shape, or both statistics"
            )
        # a module may hold one tensor in several places
        for module in self.inner.modules():
            tensors: dict[str, Any] = module._parameters if isinstance(blob, nn.Parameter) else module._buffers
            tensors.update({name: owner for name, tensor in tensors.items() if tensor is blob})

    def forward(self, *bottoms: Tensor) -> Any:
        with user_code(self.spec, self._called):
            found = self.inner(*bottoms)
        tops = self._tops(found)
        return tops[0] if len(tops) == 1 else tops

    def _tops(self, found: Any) -> tuple[Tensor, ...]:
        tops = tuple(found) if isinstance(found, tuple | list) else (found,)
        if len(tops) != len(self.spec.tops) or not all(isinstance(top, Tensor) for top in tops):
            returned = ", ".join(type(top).__name__ for top in tops)
            expected = f"{len(self.spec.tops)} tensors" if len(self.spec.tops) > 1 else "one tensor"
            raise self.spec.fail(f"{self._called} returned {returned or 'nothing'}; expected {expected}, one per top")
        # indices and masks become floats, as all of Caffe's blobs are
        return tuple(top if top.is_floating_point() else top.float() for top in tops)

"""caffe.Net."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forcereg import snapshot
from forcereg.data.feed import FeedContext
from forcereg.data.memory_data import MemoryFeed
from forcereg.errors import Fatal
from forcereg.layers.pycaffe.blob import Blob, BlobVec
from forcereg.layers.pycaffe.layer import CaffeLayer
from forcereg.layers.pycaffe.vectors import DtypeVec, IntVec, LayerVec, StringVec
from forcereg.net.load import net_spec
from forcereg.net.module import Net as TorchNet
from forcereg.pycaffe import named as by_name
from forcereg.pycaffe.chain import Chain, Weights
from forcereg.pycaffe.mappings import Named
from forcereg.pycaffe.signature import Asked, asked
from forcereg.pycaffe.stages import PythonStage, Stage
from forcereg.pycaffe.state import fatal, next_seed, ready_device, warn
from forcereg.schema.text import read_net
from forcereg.solver.state import pack


class NetLayer(CaffeLayer):
    """A layer of a net: `type` and `blobs`."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.type = stage.spec.type
        self.blobs = BlobVec(stage.params)

    def setup(self, bottom: Any, top: Any) -> None:
        """As `reshape`: the net has set it up."""
        self.reshape(bottom, top)

    def reshape(self, bottom: Any, top: Any) -> None:
        """Gives the blobs `top` the shapes that follow from those of `bottom`, which are the layer's own."""
        with fatal():
            self._stage.reshape()


class Net:
    """A Caffe net with its blobs: `Net(file, phase, level=0, stages=None, weights=None)`.

    `Net(file, weights, phase)` is the older form. `weights`: a .caffemodel, also as HDF5. Python layers that the net
    names are run. Raises RuntimeError for a file that isn't there and for whatever is wrong in one, TypeError
    (ArgumentError) for other arguments, and what Python layers raise.

    >>> import numpy as np
    >>> import forcereg.pycaffe as caffe
    >>> net = caffe.Net("deploy.prototxt", caffe.TEST, weights="net_iter_20.caffemodel.h5")
    >>> net.blobs["data"].data[...] = np.random.rand(1, 1, 8, 8)
    >>> net.forward()["prob"].shape
    (1, 3)
    """

    _chain: Chain
    _loaded: Callable[[Collection[str]], None] = staticmethod(lambda layers: None)
    """Is told which layers got weights of a file."""

    def __init__(self, *args: Any, **named: Any) -> None:
        given = asked(args, named)
        self._chain = Chain(_built(given))
        if given.weights is not None:
            self.copy_from(given.weights)

    @classmethod
    def _of(cls, net: TorchNet, weights: Weights) -> Net:
        """The face of a net that is there; `weights`: see Chain."""
        face = cls.__new__(cls)
        face._chain = Chain(net, weights)
        return face

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("a caffe.Net can't be pickled or copied; save its weights, and make another net")

    # -- what there is

    @property
    def blobs(self) -> Named[Blob]:
        """Name -> blob, in the order in which layers make them."""
        if "_blobs_dict" not in self.__dict__:
            self._blobs_dict = Named(zip(self._chain.names, self._chain.blobs, strict=True))
        return self._blobs_dict

    @property
    def params(self) -> Named[BlobVec]:
        """Layer -> its weights, of layers that have some."""
        if "_params_dict" not in self.__dict__:
            pairs = ((stage.spec.name, BlobVec(stage.params)) for stage in self._chain.stages if stage.params)
            self._params_dict = Named(pairs)
        return self._params_dict

    @property
    def layers(self) -> LayerVec:
        """The layers; one that is written in Python is the very object of its class."""
        return LayerVec(map(_layer, self._chain.stages))

    @property
    def layer_dict(self) -> Named[Any]:
        """Name -> layer."""
        if "_layer_dict" not in self.__dict__:
            self._layer_dict = Named(zip(self._layer_names, self.layers, strict=True))
        return self._layer_dict

    @property
    def blob_loss_weights(self) -> Named[float]:
        """Blob -> what it counts in the loss."""
        return Named(zip(self._chain.names, self._blob_loss_weights, strict=True))

    @property
    def inputs(self) -> list[str]:
        """Blobs that are filled from outside."""
        if "_input_list" not in self.__dict__:
            self._input_list = [self._chain.names[index] for index in self._inputs]
        return self._input_list

    @property
    def outputs(self) -> list[str]:
        """Blobs that no layer reads, sorted by name."""
        if "_output_list" not in self.__dict__:
            self._output_list = list(self._chain.net.spec.outputs)
        return self._output_list

    @property
    def bottom_names(self) -> Named[list[str]]:
        """Layer -> the blobs that it reads."""
        if "_bottom_names" not in self.__dict__:
            self._bottom_names = self._named(self._chain.bottoms)
        return self._bottom_names

    @property
    def top_names(self) -> Named[list[str]]:
        """Layer -> the blobs that it writes."""
        if "_top_names" not in self.__dict__:
            self._top_names = self._named(self._chain.tops)
        return self._top_names

    def _named(self, numbers: Sequence[Sequence[int]]) -> Named[list[str]]:
        names = self._chain.names
        return Named(
            (layer, [names[index] for index in of_layer])
            for layer, of_layer in zip(self._layer_names, numbers, strict=True)
        )

    @property
    def _layer_names(self) -> StringVec:
        return StringVec(stage.spec.name for stage in self._chain.stages)

    @property
    def _blob_names(self) -> StringVec:
        return StringVec(self._chain.names)

    @property
    def _blobs(self) -> BlobVec:
        return BlobVec(self._chain.blobs)

    @property
    def _blob_loss_weights(self) -> DtypeVec:
        weights = [0.0] * len(self._chain.blobs)
        for stage, tops in zip(self._chain.stages, self._chain.tops, strict=True):
            for top, weight in zip(tops, stage.spec.loss_weights, strict=True):
                weights[top] = weight or weights[top]
        return DtypeVec(weights)

    @property
    def _inputs(self) -> IntVec:
        stages = zip(self._chain.stages, self._chain.tops, strict=True)
        return IntVec(top for stage, tops in stages if stage.spec.type == "Input" for top in tops)

    @property
    def _outputs(self) -> IntVec:
        return IntVec(self._chain.names.index(name) for name in self.outputs)

    def _top_ids(self, layer: int) -> IntVec:
        return IntVec(self._chain.tops[layer])

    def _bottom_ids(self, layer: int) -> IntVec:
        return IntVec(self._chain.bottoms[layer])

    # -- passes

    def _forward(self, start: int, end: int) -> float:
        """Runs layers `start` to `end`, both included; their loss. Raises RuntimeError for other numbers."""
        self._chain.forward(start, end)
        return self._chain.loss(start, end)

    def _backward(self, start: int, end: int) -> None:
        """Runs backward from layer `start` to the earlier `end`, both included. Raises as `_forward`."""
        self._chain.backward(start, end)

    def forward(
        self, blobs: Any = None, start: str | None = None, end: str | None = None, **inputs: Any
    ) -> dict[str, np.ndarray]:
        """Runs the layers from `start` to `end`, both included; views of the outputs' values by name.

        `inputs` fill the net's inputs, all of them. Outputs are the net's, or the tops of `end`, and `blobs`. Raises
        ValueError for a layer, KeyError for a blob that isn't there, Exception for inputs that aren't the net's.
        """
        return by_name.forward(self, blobs, start, end, inputs)

    def backward(
        self, diffs: Any = None, start: str | None = None, end: str | None = None, **tops: Any
    ) -> dict[str, np.ndarray]:
        """Runs backward from layer `start` to the earlier `end`, both included; views of gradients by name.

        `tops` fill the gradients of the net's outputs, all of them. What comes back are the gradients of the net's
        inputs, or of the bottoms of `end`, and of `diffs`. Raises as `forward`.
        """
        return by_name.backward(self, diffs, start, end, tops)

    def forward_all(self, blobs: Any = None, **inputs: Any) -> dict[str, np.ndarray]:
        """`forward` of inputs of any number of rows, batch by batch; new arrays."""
        return by_name.forward_all(self, blobs, inputs)

    def forward_backward_all(
        self, blobs: Any = None, diffs: Any = None, **given: Any
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """`forward` and `backward` of inputs, and gradients of outputs, of any number of rows; new arrays of both."""
        return by_name.forward_backward_all(self, blobs, diffs, given)

    def _batch(self, blobs: Mapping[str, Any]) -> Iterator[dict[str, np.ndarray]]:
        """Arrays of any number of rows in pieces of the net's batch, the last one filled up with zeros."""
        return by_name.batches(self, blobs)

    def reshape(self) -> None:
        """Gives all blobs the shapes that follow from those in front of them; a forward does so by itself."""
        self._chain.reshape()

    def clear_param_diffs(self) -> None:
        """Zeros the gradients of the weights, to which backward passes add."""
        self._chain.clear_grads()

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Arrays (n, C, H, W) and n labels, float32, for the net's MemoryData layer, n a multiple of its batch size.

        They are read in place at each forward, round and round. Raises RuntimeError for what doesn't fit.
        """
        feed = next(iter(self._chain.net.feeds.values()), None)
        first = self._chain.stages[0].spec
        if not isinstance(feed, MemoryFeed) or first.type != "MemoryData":
            raise RuntimeError("set_input_arrays may only be called if the first layer is a MemoryDataLayer")
        if getattr(labels, "ndim", 0) == 1:
            labels = np.ascontiguousarray(labels)[:, np.newaxis, np.newaxis, np.newaxis]
        for what, array, item in (("data", data, feed.item), ("labels", labels, (1, 1, 1))):
            _check_array(what, array, item)
        if len(data) != len(labels):
            raise RuntimeError("data and labels must have the same first dimension")
        if len(data) % feed.batch:
            raise RuntimeError("first dimensions of input arrays must be a multiple of batch size")
        with fatal():
            feed.set_arrays(data, labels)

    def before_forward(self, call: Callable[[int], Any]) -> None:
        """`call` gets the number of each layer before its forward."""
        self._chain.hooks["before_forward"].append(call)

    def after_forward(self, call: Callable[[int], Any]) -> None:
        """`call` gets the number of each layer behind its forward."""
        self._chain.hooks["after_forward"].append(call)

    def before_backward(self, call: Callable[[int], Any]) -> None:
        """`call` gets the number of each layer before its backward, of those that skip it, too."""
        self._chain.hooks["before_backward"].append(call)

    def after_backward(self, call: Callable[[int], Any]) -> None:
        """`call` gets the number of each layer behind its backward, of those that skip it, too."""
        self._chain.hooks["after_backward"].append(call)

    # -- weights

    def copy_from(self, file: Any) -> None:
        """Loads weights by layer name; what only one side has stays. Raises RuntimeError."""
        name = os.fsdecode(file)
        check_file(name)
        net = self._chain.net
        with fatal():
            self._chain.read_weights()
            model = snapshot.read_model(name)
            self._check_model(model)
            report = snapshot.load_into(net.params, snapshot.suited(model, net), net.shared)
            self._chain.weights_changed()
            self._loaded(report.loaded)

    load_hdf5 = copy_from

    def _check_model(self, model: snapshot.ModelFile) -> None:
        net = self._chain.net
        for name, blobs in model.layers.items():
            if not blobs and any(f"{name}/{i}" not in net.shared for i in range(len(net.params.get(name, ())))):
                raise Fatal(f"{model.path}: layer {name!r} has no blobs in the file, but has some in the net")

    def share_with(self, other: Net) -> None:
        """Weights of layers of equal name are `other`'s from here on, gradients are not. Raises RuntimeError."""
        with fatal():
            self._chain.share(other._chain)

    def save(self, file: Any) -> None:
        """Writes all layers and their weights in Caffe's binary format. Raises RuntimeError."""
        self._save(file, binary=True)

    def save_hdf5(self, file: Any) -> None:
        """Writes the weights as HDF5, data/<layer>/<number>. Raises RuntimeError."""
        self._save(file, binary=False)

    def _save(self, file: Any, binary: bool) -> None:
        net = self._chain.net
        with fatal():
            self._chain.read_weights()
            message = snapshot.net_message(net.spec) if binary else None
            snapshot.write_model(os.fsdecode(file), pack(net, everywhere=binary), net=message)


def _built(given: Asked) -> TorchNet:
    """The net of a file, on the device of the mode."""
    check_file(given.network)
    if given.early and given.weights is not None:
        check_file(given.weights)
    device = ready_device()
    with fatal():
        spec = net_spec(read_net(given.network), given.phase, given.level, given.stages)
        for text in spec.warnings:
            warn(text)
        context = FeedContext(root=spec.root, device=device, seed=next_seed())
        return TorchNet(spec, context, allow_python_layers=True).place(device)


def _layer(stage: Stage) -> Any:
    return stage.user if isinstance(stage, PythonStage) else NetLayer(stage)


def check_file(name: str) -> None:
    """Raises RuntimeError for a file that can't be opened."""
    try:
        Path(name).open("rb").close()
    except (OSError, ValueError):
        raise Fatal(f"Could not open file {name}") from None


def _check_array(what: str, array: Any, item: Sequence[int]) -> None:
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        raise RuntimeError(f"{what} must be C contiguous")
    if array.ndim != 4:
        raise RuntimeError(f"{what} must be 4-d")
    if array.dtype != np.float32:
        raise RuntimeError(f"{what} must be float32")
    for axis, (kind, size) in enumerate(zip(("channels", "height", "width"), item, strict=True), 1):
        if array.shape[axis] != size:
            raise RuntimeError(f"{what} has wrong number of {kind}: {array.shape[axis]}, expected {size}")

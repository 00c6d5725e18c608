"""What runs a net where its speed is measured: torch, or a runtime that is given the net's ONNX model in memory.

One of your own: a function of a net, what it is fed and a number of threads, that gives a call, registered by
`forcereg.registry.runtime("name", "modules it needs", "how to install them")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from forcereg.exports.dims import sizes_of
from forcereg.exports.model import check_types, to_model
from forcereg.exports.onnx import OPSET
from forcereg.exports.ready import prepared
from forcereg.net.deploy.files import made_for_use
from forcereg.net.module import Net
from forcereg.registry import runtime

Run = Callable[[], Any]
Inputs = Mapping[str, Tensor]


@runtime("torch", "torch")
def in_torch(net: Net, inputs: Inputs, threads: int) -> Run:
    """The net itself; its threads are the whole process's, so whoever measures sets them."""
    return partial(net, inputs)


@runtime("onnxruntime", "onnx onnxruntime", 'pip install "forcereg[export]"')
def in_onnxruntime(net: Net, inputs: Inputs, threads: int) -> Run:
    """ONNX Runtime on the CPU; gives the outputs in the net's order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # threads that went on spinning would slow whatever takes its turn next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model_of(net), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, arrays(inputs))


@runtime("openvino", "onnx openvino", 'pip install "forcereg[openvino]"')
def in_openvino(net: Net, inputs: Inputs, threads: int) -> Run:
    """OpenVINO on the CPU, in float32 as the others; gives the outputs in the net's order."""
    import openvino

    core = openvino.Core()
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(core.read_model(model_of(net)), "CPU", hints).create_infer_request()
    return partial(_inferred, request, arrays(inputs))


def _inferred(request: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return list(request.infer(inputs, share_inputs=True).values())


def model_of(net: Net) -> bytes:
    """The net as an ONNX model of its own sizes. Raises ForceregError for a layer that has no form in ONNX."""
    check_types(net)
    return b"".join(to_model(net, sizes_of(net, {}), {}, OPSET).pieces())


def arrays(inputs: Inputs) -> dict[str, np.ndarray]:
    """The inputs in Caffe's order of axes, whatever their layout."""
    return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in inputs.items()}


def for_use(net: Net, level: int = 0, stages: tuple[str, ...] = (), allow_python_layers: bool = False) -> Net:
    """A net in memory as `forcereg export` writes it, with its own weights and sizes of inputs. Raises ForceregError.

    Labels, losses and scores are gone, BatchNorms are folded.
    """
    made = partial(
        made_for_use, net, None, lambda text: None,
        level=level, stages=stages, allow_python_layers=allow_python_layers,
    )  # fmt: skip
    # twice: a shape may be given only for what is left of the inputs
    sizes = {name: net.shapes[name] for name in made().inputs}
    return prepared(made(input_shapes=sizes), fold=True, allow=allow_python_layers).net

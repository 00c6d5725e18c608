"""Runs an ONNX file in a program, which `sys.path` leads to: python worker.py PROGRAM model.onnx in.npz out.npy"""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import numpy as np


def opencv(path: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import cv2

    net = cv2.dnn.readNetFromONNX(path)
    for name, values in inputs.items():
        net.setInput(values, name)
    return net.forward()


def openvino(path: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model(inputs)[0]


def netron(path: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What its server gives for the file, as bytes."""
    import netron

    host, port = netron.start(path, browse=False)
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/data/{Path(path).name}") as answer:
            return np.frombuffer(answer.read(), np.uint8)
    finally:
        netron.stop()


if __name__ == "__main__":
    program, model, given, out = sys.argv[1:]
    with np.load(given) as arrays:
        np.save(out, {"opencv": opencv, "openvino": openvino, "netron": netron}[program](model, dict(arrays)))

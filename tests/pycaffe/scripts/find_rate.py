"""Raises the learning rate step by step and tells at which the loss falls fastest: find_rate.py solver.prototxt"""

import os
import sys
import tempfile

import caffe
import numpy as np
from caffe.proto import caffe_pb2
from google.protobuf import text_format

param = caffe_pb2.SolverParameter()
with open(sys.argv[1]) as f:
    text_format.Merge(f.read(), param)
param.base_lr = 1e-3
param.snapshot_after_train = False
param.ClearField("test_iter")
param.ClearField("test_interval")
param.train_net, _ = param.net, param.ClearField("net")
with tempfile.NamedTemporaryFile("w", suffix=".prototxt", delete=False) as f:
    f.write(str(param))

solver = caffe.SGDSolver(f.name)
os.unlink(f.name)
rates, losses = [], []
smooth = None
while solver.param.base_lr < 10:
    solver.step(1)
    loss = float(solver.net.blobs["loss"].data)
    smooth = loss if smooth is None else 0.8 * smooth + 0.2 * loss
    rates.append(solver.param.base_lr)
    losses.append(smooth)
    if not np.isfinite(loss) or smooth > 4 * min(losses):
        break
    solver.param.base_lr *= 1.5

slopes = np.gradient(losses, np.log(rates))
print("%d steps, loss %.3f to %.3f" % (solver.iter, losses[0], min(losses)))
print("suggested rate %.4f" % rates[int(slopes.argmin())])

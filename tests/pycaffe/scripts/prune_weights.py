"""Sets the smallest weights to zero and trains the others on: prune_weights.py solver model out deploy"""

import sys

import caffe
import numpy as np

solver_file, model, out = sys.argv[1:4]
fraction = 0.6

solver = caffe.get_solver(solver_file)
solver.net.copy_from(model)

masks = {}
for name in ("conv1", "ip1"):
    weights = solver.net.params[name][0].data
    threshold = np.sort(np.abs(weights).ravel())[int(fraction * weights.size)]
    masks[name] = np.abs(weights) >= threshold
    weights *= masks[name]

for it in range(10):
    solver.step(1)
    for name, mask in masks.items():
        solver.net.params[name][0].data[...] *= mask
    if it % 5 == 0:
        print("Iteration %d, loss %f" % (solver.iter, solver.net.blobs["loss"].data))

correct = 0
for _ in range(2):
    solver.test_nets[0].forward()
    correct += solver.test_nets[0].blobs["accuracy"].data
solver.net.save(out)

pruned = caffe.Net(sys.argv[4], out, caffe.TEST)
for name in masks:
    w = pruned.params[name][0].data
    print("%s: %.2f zeros" % (name, 1 - np.count_nonzero(w) / float(w.size)))
print("accuracy %.2f" % (correct / 2))

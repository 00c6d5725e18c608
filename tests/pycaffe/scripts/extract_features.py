"""Features of a layer for every record of the net's own data layer, into an HDF5 file."""

import argparse

import caffe
import h5py
import numpy as np


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--layer", default="ip1")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("output")
    return parser.parse_args()


args = parse_args()
caffe.set_mode_cpu()
net = caffe.Net(args.model, args.weights, caffe.TEST)
assert args.layer in net.blobs, "%s is none of %s" % (args.layer, list(net.blobs.keys()))

features, labels = [], []
for _ in xrange(args.batches):
    net.forward(end=args.layer)
    features.append(net.blobs[args.layer].data.copy())
    labels.append(net.blobs["label"].data.copy())

with h5py.File(args.output, "w") as f:
    f.create_dataset(args.layer, data=np.vstack(features), compression="gzip")
    f.create_dataset("label", data=np.concatenate(labels))
    f.attrs["layer"] = args.layer
    print("wrote %d x %d features" % f[args.layer].shape)

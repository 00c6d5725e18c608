"""How often each class is found, over an LMDB: accuracy_by_class.py --proto P --model M --lmdb L --mean MEAN"""

from __future__ import print_function

import os
from optparse import OptionParser

os.environ["GLOG_minloglevel"] = "2"

import caffe
import lmdb
import numpy as np

parser = OptionParser()
parser.add_option("--proto")
parser.add_option("--model")
parser.add_option("--lmdb")
parser.add_option("--scale", type="float", default=1 / 256.0)
options, _ = parser.parse_args()

net = caffe.Net(options.proto, options.model, caffe.TEST)
caffe.set_mode_cpu()
count, right = 0, {}
matrix = np.zeros((3, 3), dtype=np.int64)
lmdb_env = lmdb.open(options.lmdb, readonly=True, lock=False)
lmdb_cursor = lmdb_env.begin().cursor()

for key, value in lmdb_cursor:
    datum = caffe.proto.caffe_pb2.Datum()
    datum.ParseFromString(value)
    label = int(datum.label)
    image = caffe.io.datum_to_array(datum).astype(np.float32)
    again = np.fromstring(datum.data, dtype=np.uint8).reshape(datum.channels, datum.height, datum.width)
    assert (again == image).all()
    out = net.forward_all(data=np.asarray([image * options.scale]))
    plabel = int(out["prob"][0].argmax(axis=0))
    count += 1
    matrix[label, plabel] += 1
    right[label] = right.get(label, 0) + int(label == plabel)

for label in sorted(right):
    print("class %d: %.3f" % (label, right[label] / float(matrix[label].sum())))
print("accuracy %.3f of %d" % (matrix.trace() / float(count), count))

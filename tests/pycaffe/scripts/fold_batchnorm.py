"""Folds BatchNorm and Scale into the convolution in front: fold_batchnorm.py in.prototxt in.caffemodel out_prefix"""

import sys

import caffe
import google.protobuf.text_format as txtf
import numpy as np
from caffe.proto import caffe_pb2

src_proto, src_model, prefix = sys.argv[1:4]

net = caffe_pb2.NetParameter()
with open(src_proto) as f:
    txtf.Merge(f.read(), net)

kept, renamed = [], {}
for layer in net.layer:
    if layer.type in ("BatchNorm", "Scale"):
        renamed[layer.top[0]] = renamed.get(layer.bottom[0], layer.bottom[0])
        continue
    for names in (layer.bottom, layer.top):
        for i, name in enumerate(names):
            names[i] = renamed.get(name, name)
    kept.append(layer)
folded = caffe_pb2.NetParameter(name=net.name + "_folded")
folded.layer.extend(kept)
with open(prefix + ".prototxt", "w") as f:
    f.write(str(folded))

old = caffe.Net(src_proto, caffe.TEST, weights=src_model)
new = caffe.Net(prefix + ".prototxt", caffe.TEST)
for name in new.params:
    for i in range(len(new.params[name])):
        new.params[name][i].data[...] = old.params[name][i].data

mean, var, factor = [blob.data for blob in old.params["bn1"]]
gamma, beta = [blob.data for blob in old.params["scale1"]]
factor = 0 if factor[0] == 0 else 1 / factor[0]
std = np.sqrt(var * factor + 1e-5)
new.params["conv1"][0].data[...] *= (gamma / std).reshape(-1, 1, 1, 1)
new.params["conv1"][1].data[...] = (new.params["conv1"][1].data - mean * factor) * gamma / std + beta
new.save(prefix + ".caffemodel")

x = np.random.rand(*old.blobs["data"].data.shape)
a = old.forward(data=x)["prob"].copy()
b = new.forward(data=x)["prob"]
print("layers %d -> %d, largest difference %g" % (len(old.layers), len(new.layers), np.abs(a - b).max()))
assert np.allclose(a, b, atol=1e-4)

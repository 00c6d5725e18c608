"""mean.binaryproto -> mean.npy: convert_mean.py mean.binaryproto mean.npy"""

import sys

import caffe
import numpy as np

if len(sys.argv) != 3:
    print("Usage: python convert_mean.py proto.mean out.npy")
    sys.exit(1)

blob = caffe.proto.caffe_pb2.BlobProto()
data = open(sys.argv[1], "rb").read()
blob.ParseFromString(data)
arr = np.array(caffe.io.blobproto_to_array(blob))
out = arr[0]
np.save(sys.argv[2], out)

print("%s %.3f" % (out.shape, out.mean(1).mean(1)[0]))

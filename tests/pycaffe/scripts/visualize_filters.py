"""The first layer's filters as one picture, in squares."""

import sys

import caffe
import numpy as np
from PIL import Image


def vis_square(data):
    """Takes an array (n, height, width) and lays it out in a grid of about sqrt(n) by sqrt(n)."""
    data = (data - data.min()) / (data.max() - data.min())
    n = int(np.ceil(np.sqrt(data.shape[0])))
    padding = ((0, n**2 - data.shape[0]), (0, 1), (0, 1)) + ((0, 0),) * (data.ndim - 3)
    data = np.pad(data, padding, mode="constant", constant_values=1)
    data = data.reshape((n, n) + data.shape[1:]).transpose((0, 2, 1, 3) + tuple(range(4, data.ndim + 1)))
    return data.reshape((n * data.shape[1], n * data.shape[3]) + data.shape[4:])


net = caffe.Net(sys.argv[1], sys.argv[2], caffe.TEST)

for layer_name, blob in net.blobs.iteritems():
    print(layer_name + "\t" + str(blob.data.shape))
for layer_name, param in net.params.iteritems():
    print(layer_name + "\t" + str(param[0].data.shape))

filters = net.params["conv1"][0].data
grid = vis_square(filters.transpose(0, 2, 3, 1)[..., 0])
Image.fromarray((grid * 255).astype(np.uint8)).resize((180, 180), Image.NEAREST).save(sys.argv[3])

# and what they answer to one image
net.blobs["data"].reshape(1, 1, 12, 12)
net.blobs["data"].data[...] = caffe.io.load_image(sys.argv[4], color=False).transpose(2, 0, 1)
net.forward()
feat = net.blobs["conv1"].data[0]
print("answers %s, strongest filter %d" % (vis_square(feat).shape, feat.max((1, 2)).argmax()))

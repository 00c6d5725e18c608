"""Lists the layers of a binary caffemodel, of any age, by its messages alone."""

import sys

from caffe.proto import caffe_pb2


def main():
    net = caffe_pb2.NetParameter()
    with open(sys.argv[1], "rb") as f:
        net.ParseFromString(f.read())
    layers = net.layer if len(net.layer) else net.layers
    total = 0
    for layer in layers:
        kind = layer.type
        if not isinstance(kind, str):
            kind = caffe_pb2.V1LayerParameter.LayerType.Name(kind)
        shapes = [tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width) for blob in layer.blobs]
        count = sum(len(blob.data) for blob in layer.blobs)
        total += count
        print("%-8s %-14s %s %d" % (layer.name, kind, shapes, count))
    print("%s: %d layers, %d parameters" % (net.name, len(layers), total))


if __name__ == "__main__":
    main()

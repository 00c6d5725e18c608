#!/usr/bin/env python
"""A detector's test loop: image blobs of varying size, boxes from deltas, non-maximum suppression, a pickle."""

import argparse
import cPickle
import os
import pprint
import sys
import time

import caffe
import numpy as np


class Timer(object):
    def __init__(self):
        self.total_time, self.calls, self.start_time = 0.0, 0, 0.0

    def tic(self):
        self.start_time = time.time()

    def toc(self):
        self.total_time += time.time() - self.start_time
        self.calls += 1
        return self.total_time / self.calls


def nms(dets, thresh):
    x1, y1, x2, y2, scores = dets.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    order = scores.argsort()[::-1]
    keep = []
    while order.size > 0:
        i = order[0]
        keep.append(i)
        w = np.maximum(0.0, np.minimum(x2[i], x2[order[1:]]) - np.maximum(x1[i], x1[order[1:]]) + 1)
        h = np.maximum(0.0, np.minimum(y2[i], y2[order[1:]]) - np.maximum(y1[i], y1[order[1:]]) + 1)
        ovr = w * h / (areas[i] + areas[order[1:]] - w * h)
        order = order[np.where(ovr <= thresh)[0] + 1]
    return keep


def get_image_blob(im, scale):
    im = caffe.io.resize_image(im, [int(s * scale) for s in im.shape[:2]])
    return im[np.newaxis].transpose((0, 3, 1, 2)), np.array([[im.shape[0], im.shape[1], scale]], dtype=np.float32)


def im_detect(net, im, scale):
    blobs = {}
    blobs["data"], blobs["im_info"] = get_image_blob(im, scale)
    # reshape network inputs
    net.blobs["data"].reshape(*(blobs["data"].shape))
    net.blobs["im_info"].reshape(*(blobs["im_info"].shape))
    forward_kwargs = {"data": blobs["data"].astype(np.float32, copy=False)}
    forward_kwargs["im_info"] = blobs["im_info"].astype(np.float32, copy=False)
    blobs_out = net.forward(**forward_kwargs)
    scores = blobs_out["cls_prob"][0]
    deltas = blobs_out["bbox_pred"][0]
    height, width = scores.shape[-2:]
    shift_x, shift_y = np.meshgrid(np.arange(width) * 4, np.arange(height) * 4)
    anchors = np.stack([shift_x, shift_y, shift_x + 7, shift_y + 7]).astype(np.float32)
    boxes = (anchors + deltas) / scale
    return scores.reshape(len(scores), -1).T, boxes.reshape(4, -1).T


def test_net(net, images, scales=(1.0, 2.0), thresh=0.05):
    num_classes = net.blobs["cls_prob"].channels
    all_boxes = [[[] for _ in xrange(len(images))] for _ in xrange(num_classes)]
    _t = {"im_detect": Timer()}
    for i, name in enumerate(images):
        im = caffe.io.load_image(name)
        for scale in scales:
            _t["im_detect"].tic()
            scores, boxes = im_detect(net, im, scale)
            _t["im_detect"].toc()
            for j in xrange(1, num_classes):
                inds = np.where(scores[:, j] > thresh)[0]
                dets = np.hstack((boxes[inds], scores[inds, j][:, np.newaxis])).astype(np.float32, copy=False)
                all_boxes[j][i] = dets[nms(dets, 0.3), :]
        print("im_detect: {:d}/{:d} {}".format(i + 1, len(images), net.blobs["data"].data.shape))
        assert _t["im_detect"].calls == (i + 1) * len(scales)
    return all_boxes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Test a detector")
    parser.add_argument("--gpu", dest="gpu_id", default=0, type=int)
    parser.add_argument("--def", dest="prototxt")
    parser.add_argument("--net", dest="caffemodel", default=None)
    parser.add_argument("images", nargs="+")
    args = parser.parse_args()
    pprint.pprint(sorted(os.path.basename(name) for name in args.images))
    while not os.path.exists(args.caffemodel):
        sys.exit("no {}".format(args.caffemodel))
    caffe.set_mode_cpu()
    net = caffe.Net(args.prototxt, args.caffemodel, caffe.TEST)
    net.name = os.path.splitext(os.path.basename(args.caffemodel))[0]
    found = test_net(net, args.images)
    with open(net.name + "_detections.pkl", "wb") as f:
        cPickle.dump(found, f, cPickle.HIGHEST_PROTOCOL)
    print("{} boxes".format(sum(len(boxes) for cls in found for boxes in cls)))

"""Means over the scores of several models, weighted: ensemble.py deploy.prototxt a.caffemodel b.caffemodel -- images"""

import cPickle as pickle
import sys

import caffe
import numpy as np

split = sys.argv.index("--")
proto, models, images = sys.argv[1], sys.argv[2:split], sys.argv[split + 1 :]

transformer = None
scores = []
for model in models:
    net = caffe.Classifier(proto, model, image_dims=(12, 12), raw_scale=1)
    inputs = [caffe.io.load_image(name, color=False) for name in images]
    scores.append(net.predict(inputs, oversample=False))

weights = np.array([2.0] + [1.0] * (len(models) - 1))
mean = np.tensordot(weights / weights.sum(), scores, 1)
for name, row in zip(images, mean):
    print("%s %d %.3f" % (name, row.argmax(), row.max()))
with open("ensemble.pkl", "wb") as f:
    pickle.dump({"mean": mean, "models": models}, f)

"""What Python layers and Caffe's Python interface share: blobs, their memory, vectors, and the layers themselves."""

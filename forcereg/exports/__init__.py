"""Trained nets as files for other programs: ONNX, written layer by layer and proved."""

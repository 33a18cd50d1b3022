"""A trained network at work: logits, tiles, full-size labels, ONNX."""

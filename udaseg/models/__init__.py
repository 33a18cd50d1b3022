"""Networks: library backbones, segmentation heads, and the segmenter that combines them."""

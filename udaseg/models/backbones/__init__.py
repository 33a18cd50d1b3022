"""Backbones: from images to a list of feature maps. `backbone.py` says what each must do."""

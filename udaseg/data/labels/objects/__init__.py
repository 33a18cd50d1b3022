"""Label formats of annotation tools, whose labels are named objects instead of ids."""

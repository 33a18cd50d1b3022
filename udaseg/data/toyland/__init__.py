"""Toyland: an unlimited, seeded benchmark of street scenes in two cities, rendered on demand.

`source` is a sunny, clean render of one city with labels. `target` is another city, photographed
with haze, rain, dusk or low sun through an imperfect camera. Both share 13 classes and the layout
of a street, so a network trained on one can be adapted to the other.
"""

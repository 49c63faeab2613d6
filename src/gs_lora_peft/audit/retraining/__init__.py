"""Models that never learned some classes: the same architecture, trained again without them."""

"""Rivals that edit weights: by their importance, by learned noise, by bargained gradients, by negation."""

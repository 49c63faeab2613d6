"""Unlearning methods of the literature, a file for each idea."""

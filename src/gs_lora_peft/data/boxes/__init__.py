"""Annotated boxes: reading, checking, splitting and collating them."""

"""The objective of object detectors."""

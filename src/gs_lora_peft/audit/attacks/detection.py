"""Attacks on detectors. The helper "detection" (branch h/detection) writes them: "references" need not."""

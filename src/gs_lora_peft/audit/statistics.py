"""Bootstrap intervals of what an attack recovers."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

RESAMPLES = 1000
_EDGES = (2.5, 97.5)
_Z = 1.96
_KEPT_WEIGHTS = 1_000_000  # numbers: 8 MB


def interval_of_hits(hits: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over draws and samples.

    Percentile bootstrap: draws and samples are both drawn anew, with replacement, so that the interval covers other
    draws of the attacker as well as other samples.

    Args:
        hits (`np.ndarray`):
            Shape `(draws, samples)`.
        resamples (`int`, *optional*, defaults to 1000):
            Number of bootstrap samples.
        seed (`int`, *optional*, defaults to 0):
            Seed.

    Returns:
        `tuple[float, float]`: Lower and upper end.
    """
    hits = np.asarray(hits, dtype=float)
    draws, samples = hits.shape
    kept = resamples * samples <= _KEPT_WEIGHTS
    by_draw, by_sample = (_weights if kept else _weights.__wrapped__)(draws, samples, resamples, seed)
    means = np.einsum("rd,rd->r", by_draw, by_sample @ hits.T)
    low, high = np.percentile(means, _EDGES)
    # Where every sample gives the same, resampling sees no spread: Wilson's interval for 0 or all of n.
    reach = _Z**2 / (samples + _Z**2)
    return (0.0, reach) if not hits.any() else (1 - reach, 1.0) if (hits == 1).all() else (float(low), float(high))


@lru_cache(maxsize=8)
def _weights(draws: int, samples: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of rows and columns instead of copies of the matrix. An audit asks for the same ones many times."""
    rng = np.random.default_rng(seed)
    by_draw, by_sample = (rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n for n in (draws, samples))
    return by_draw, by_sample


def interval_of_values(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over draws, by percentile bootstrap; the value twice for a single draw.

    Args:
        values (`np.ndarray`):
            Shape `(draws,)`.
        resamples (`int`, *optional*, defaults to 1000):
            Number of bootstrap samples.
        seed (`int`, *optional*, defaults to 0):
            Seed.
    """
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.percentile(means, _EDGES)
    return float(low), float(high)

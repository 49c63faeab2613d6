"""Training an adapter in several processes."""

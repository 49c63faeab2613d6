"""Calls to the Hub with retries, downloads, and commits that are complete or absent."""

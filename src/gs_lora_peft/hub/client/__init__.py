"""Calls to the Hub: retried, checked, and all of a commit or nothing."""

"""Measurements, not tests: each module prints one table."""

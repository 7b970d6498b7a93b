"""Benchmarks: what sdekit and other libraries reach, measured in one run."""

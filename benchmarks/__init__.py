"""Comparisons with the code a user would write otherwise: `make bench`, or `python -m benchmarks NAME`."""

"""What this library costs beside what a user would write otherwise: `make bench`, or `python -m benchmarks NAME`."""

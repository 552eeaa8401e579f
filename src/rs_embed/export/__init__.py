"""From a file of places to a dataset: places to partitions, partitions to files, on one machine or many."""

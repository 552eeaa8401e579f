"""One dataset under kills, faults and a full disk for a long time, compared with a calm run: `make soak`."""

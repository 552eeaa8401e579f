"""Structured fuzzing of what reads files from elsewhere: `make fuzz`. A target is a function in `targets`."""

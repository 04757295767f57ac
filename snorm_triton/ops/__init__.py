"""The arithmetic, which knows tensors alone."""

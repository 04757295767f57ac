"""How torch runs the arithmetic: eagerly, compiled, in its own operations alone, on many ranks."""

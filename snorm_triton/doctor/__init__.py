"""What `python -m snorm_triton doctor` says of a machine."""

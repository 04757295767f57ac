"""The singular values of a checkpoint's weights, raw and as they are used."""

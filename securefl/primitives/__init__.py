"""securefl.primitives."""

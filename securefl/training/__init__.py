"""securefl.training."""

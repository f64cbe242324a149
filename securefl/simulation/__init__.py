"""securefl.simulation."""

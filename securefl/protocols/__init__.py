"""securefl.protocols."""

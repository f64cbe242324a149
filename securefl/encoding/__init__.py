"""securefl.encoding."""

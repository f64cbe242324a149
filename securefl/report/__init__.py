"""securefl.report."""

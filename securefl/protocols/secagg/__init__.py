"""securefl.protocols.secagg."""

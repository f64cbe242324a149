"""An app for tests: its training is a known function of node and round, and it fails on request."""

"""An app for benchmarks: what it costs is what its messages cost."""

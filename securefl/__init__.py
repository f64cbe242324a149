"""SecureFL."""

"""The attacks of this library beside those of others."""

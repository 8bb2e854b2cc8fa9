"""How linear networks are around images."""

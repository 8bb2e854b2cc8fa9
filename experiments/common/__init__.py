"""Flags, results on disk, tables and figures that the experiments share."""

"""Trains a network for every point of a grid."""

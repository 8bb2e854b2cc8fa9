"""Experiments on the command line, a module or a package for each question."""

"""The code that the experiments share, such as flags, results, tables and figures."""

"""Code that the experiments share: flags, results on disk, tables, figures."""

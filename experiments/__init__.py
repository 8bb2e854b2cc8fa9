"""experiments: absl binaries, one per question. They hold no mathematics."""

"""The limits that an accelerator sets to train steps."""

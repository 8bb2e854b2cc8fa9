"""The paths between adversarial training and data-dependent regularisation."""

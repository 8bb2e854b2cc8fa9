"""The curvature of the loss of networks."""

"""The question of the paper on the regularisation view of adversarial robustness."""

"""How good scores, verdicts and routing are, and studies of hyperparameters."""

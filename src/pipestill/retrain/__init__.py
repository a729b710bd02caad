"""Scheduled retraining: windows of new rows, whether to train, the decision, and its ledger."""

"""The shipped settings: ``train.yaml`` and one file for each model and engine."""

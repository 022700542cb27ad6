"""What assets talk to: tables, the feature store, experiment tracking. Plain classes, made from the settings."""

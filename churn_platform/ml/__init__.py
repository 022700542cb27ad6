"""What the platform computes: plain functions, with no Dagster, Feast, MLflow or BentoML in them."""

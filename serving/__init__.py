"""The churn service: BentoML around an HTTP app that answers with the champion's prediction.

Nothing here imports Dagster: the service runs where no orchestrator does.
"""

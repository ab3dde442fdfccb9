"""Points and pictures of a run: spooled in its folder, and delivered to MLflow in the background.

tracker -> spool (metrics.jsonl) -> delivery (a thread) -> mlflow_run -> mlflow_client -> MLflow
"""

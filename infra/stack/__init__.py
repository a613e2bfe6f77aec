"""The local stack: Prefect, MLflow, predictor, worker and the supervisor that keeps them up."""

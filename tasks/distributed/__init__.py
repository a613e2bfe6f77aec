"""What runs in child processes: tokenising, training and generation. No prefect, mlflow, s3fs here."""

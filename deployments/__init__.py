"""What runs for long: Prefect deployments, the predictor, the command line."""

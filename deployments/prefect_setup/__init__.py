"""What Prefect's server is told of Anneal: pools, deployments, limits, secrets."""

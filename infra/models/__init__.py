"""Models by name: the registry in MLflow, base models and their folders."""

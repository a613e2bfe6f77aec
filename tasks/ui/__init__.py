"""What Prefect's pages show of a run: reports, progress, charts."""

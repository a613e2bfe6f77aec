"""The gateway: Replicate's HTTP API for a user's own GPUs, over a log of what clients asked for."""

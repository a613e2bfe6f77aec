"""The gateway's pages: what its API does, for people with a browser; all of it works without script."""

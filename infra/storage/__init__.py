"""Where bytes come from and go: the store, S3, other clouds, HTTPS."""

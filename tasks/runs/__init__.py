"""Flow runs that survive: attempts, fences, locks, retries, recovery."""

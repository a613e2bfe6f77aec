"""Who may come in, and what may not come out: doors, the home's secret, redaction."""

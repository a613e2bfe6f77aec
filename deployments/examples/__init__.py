"""The demo, recipes for common jobs, and how the demo's base model was made."""

"""What runs in child processes: tokenising, training and generation. No prefect, mlflow, s3fs here."""

import logging

# PEFT imports bitsandbytes, which says on CPUs with bf16 that an optional kernel for 4-bit bases is not installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

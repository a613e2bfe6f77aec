"""The pipelines. The order of the steps is in finetune.py and nowhere else.

Importing this package points Prefect at the running stack, so that `finetune(...)` in a Python program is
seen there; prefect itself reads its settings when it is imported.
"""

from infra.redaction import redact_logs
from infra.settings import Settings
from infra.stack.services import adopt

redact_logs()
adopt(Settings())

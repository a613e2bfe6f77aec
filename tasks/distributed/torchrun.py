"""torchrun, which says nothing of a signal that ends it: forty lines of traceback in a run's log would say no more.

In:   torchrun's options      Out: its exit code; 1 when it was told to stop, as its own
Run alone: python -m tasks.distributed.torchrun --standalone --nproc-per-node=2 -m tasks.distributed.train job.json
"""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except SignalException:  # torchrun's own log line names the signal
        sys.exit(1)

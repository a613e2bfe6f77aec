"""Record the golden trajectories anew: python -m tests.invariants.record

Only where a change is meant to alter the numbers; say why in DECISIONS.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.invariants.conftest import make_job, trajectory
from tests.invariants.test_trajectory import GOLDEN
from tests.support import ranks


def main() -> None:
    """Write golden/lora.txt and golden/full.txt."""
    GOLDEN.mkdir(exist_ok=True)
    for method in ("lora", "full"):
        with tempfile.TemporaryDirectory() as folder:
            job = make_job.__wrapped__(Path(folder))("run", peft_method=method)  # type: ignore[attr-defined]
            assert ranks.run(job, 1) == [0]
            lines = [f"{step} {loss.hex()} {norm.hex()}" for step, (loss, norm) in trajectory(job).items()]
            (GOLDEN / f"{method}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

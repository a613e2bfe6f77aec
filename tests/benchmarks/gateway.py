"""`make bench-gateway`: what the gateway adds to a request, and how much memory lists and uploads take.

GET of a training and POST of one by CLIENTS clients at once, against the same routes with the same answers on a bare
FastAPI app without database, key or check; each a process of its own, in turns. Then TRAININGS rows are listed page by
page, and a file of UPLOAD_MB is uploaded in chunks, while the gateway's memory (proportional set size) is looked at.
Prefect and MLflow are away, which the gateway's answers do not depend on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import psutil

from deployments.gateway.database import Database
from deployments.gateway.intents import begun
from deployments.gateway.tables import Training
from infra.settings import Settings
from tests.benchmarks.report import finish, medians, say
from tests.conftest import ROOT, free_port, wait_until_responds

CLIENTS, ROUNDS, SECONDS = 16, 3, 5.0
TRAININGS, UPLOAD_MB = 10_000, 1000
MOST_RATIO, MOST_MIB = 3.0, 200.0
KEY = "bench-key"
ROW = json.dumps({"prompt": "What is the capital of France? " * 8, "completion": "Paris. " * 8}).encode() + b"\n"
BARE = """
import json, sys
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
import uvicorn
answer = json.loads(sys.argv[2])
app = FastAPI()
@app.get("/v1/trainings/{identity}")
def get(identity: str): return answer
@app.post("/v1/models/{owner}/{name}/versions/{version}/trainings")
async def create(owner: str, name: str, version: str, request: Request):
    await request.json()
    return JSONResponse(answer, 201)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""


def main() -> None:
    """Measure, compare, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--upload-mb", type=int, default=UPLOAD_MB)
    options.add_argument("--seconds", type=float, default=SECONDS)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, gateway(Path(folder)) as (url, process):
        http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=600, trust_env=False)
        model = {"owner": "acme", "name": "notes", "visibility": "private", "hardware": "cpu"}
        assert http.post("/v1/models", json=model).status_code == 201
        version = http.get("/v1/models/anneal/demo-base").json()["latest_version"]["id"]
        create = f"/v1/models/anneal/demo-base/versions/{version}/trainings"
        body = {"destination": "acme/notes", "input": {"train_data": "https://data.example/rows.jsonl"}}
        made = http.post(create, json=body).json()
        with bare(made) as other:
            found = compared({"gateway": url, "bare": other}, made["id"], create, body, chosen.seconds)
        listed = list_all(http, process, Path(folder))
        uploaded = upload(http, process, chosen.upload_mb)
    figures = {**found, **listed, **uploaded}
    goals = {
        f"GET of a training: p99 at most {MOST_RATIO} times a bare app's": found["ratio_get_p99"] <= MOST_RATIO,
        f"creates: at most {MOST_RATIO} times a bare app's time": found["ratio_create"] <= MOST_RATIO,
        f"{TRAININGS} trainings listed in less than {MOST_MIB} MiB more": listed["list_more_mib"] < MOST_MIB,
        f"{chosen.upload_mb} MB uploaded in less than {MOST_MIB} MiB more": uploaded["upload_more_mib"] < MOST_MIB}
    finish(figures, goals, ("fastapi", "starlette", "uvicorn", "sqlalchemy"))


def compared(
    urls: dict[str, str], identity: str, create: str, body: dict[str, Any], seconds: float,
) -> dict[str, float]:
    """p99 of GET in ms and creates a second of each, in turns, and their ratios (above 1: the gateway is slower)."""
    p99: dict[str, list[float]] = {name: [] for name in urls}
    rate: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(1, ROUNDS + 1):
        for name, url in urls.items():
            times = asyncio.run(load(url, "GET", f"/v1/trainings/{identity}", None, seconds))
            p99[name].append(quantiles(times, n=100)[98] * 1000)
            rate[name].append(len(asyncio.run(load(url, "POST", create, body, seconds))) / seconds)
            say(f"  round {number}/{ROUNDS}  {name:<8} GET p99 {p99[name][-1]:.1f} ms, {rate[name][-1]:.0f} creates/s")
    get, creates = medians(p99), medians(rate)
    return {"get_p99_ms": round(get["gateway"], 2), "bare_get_p99_ms": round(get["bare"], 2),
            "ratio_get_p99": round(get["gateway"] / get["bare"], 3), "creates_per_s": round(creates["gateway"], 1),
            "bare_creates_per_s": round(creates["bare"], 1),
            "ratio_create": round(creates["bare"] / creates["gateway"], 3)}


async def load(url: str, method: str, path: str, body: Any, seconds: float) -> list[float]:
    """Seconds of each request that CLIENTS clients had answered within the time."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60,
                                     trust_env=False) as http:
            while (began := time.perf_counter()) < until:
                answer = await http.request(method, path, json=body)
                if answer.status_code == 429:
                    raise SystemExit("the rate limit ended the measurement")
                assert answer.is_success, answer.text
                times.append(time.perf_counter() - began)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return times


def list_all(http: httpx.Client, process: psutil.Process, home: Path) -> dict[str, float]:
    """Seconds and memory of a list of TRAININGS rows, page by page."""
    database = Database(Settings(home=home))
    with database.session() as session:
        session.add_all(Training(**{
            **begun(), "id": f"{number:026}", "owner": "acme", "model": "m/n", "version": "0" * 64, "input": {},
            "destination": "acme/notes", "spec": {}, "about": {}, "request_hash": "", "idempotency_key": None,
            "source": "api", "base_url": "", "webhook": "", "webhook_completed": "", "webhook_events": [],
            "status": "succeeded", "completed_at": time.time()}) for number in range(TRAININGS))
    database.close()
    count, address = 0, "/v1/trainings"
    with watched(process) as memory:
        began = time.perf_counter()
        while address:
            page = http.get(address).json()
            count, address = count + len(page["results"]), page["next"] or ""
        took = time.perf_counter() - began
    assert count > TRAININGS
    say(f"  {count} trainings listed in {took:.1f} s, {memory['more']:.0f} MiB more")
    return {"listed": count, "list_s": round(took, 2), "list_more_mib": memory["more"]}


def upload(http: httpx.Client, process: psutil.Process, megabytes: int) -> dict[str, float]:
    """Seconds and memory of an upload of so many MB of rows, judged line by line."""
    block = ROW * (1_000_000 // len(ROW))
    border = b"bench"
    head = (b"--" + border + b'\r\nContent-Disposition: form-data; name="content"; filename="big.jsonl"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n")

    def parts() -> Iterator[bytes]:
        yield head
        for _ in range(megabytes):
            yield block
        yield b"\r\n--" + border + b"--\r\n"

    with watched(process) as memory:
        began = time.perf_counter()
        answer = http.post("/v1/files", content=parts(), headers={
            "Content-Type": f"multipart/form-data; boundary={border.decode()}"})
        took = time.perf_counter() - began
    assert answer.status_code == 201, answer.text
    say(f"  {answer.json()['size'] / 1e6:.0f} MB uploaded and judged in {took:.0f} s, {memory['more']:.0f} MiB more")
    return {"upload_s": round(took, 1), "upload_more_mib": memory["more"], "upload_peak_mib": memory["peak"]}


@contextmanager
def watched(process: psutil.Process) -> Iterator[dict[str, float]]:
    """The peak of a process's memory meanwhile, and how much more that is than before; children count too."""
    def now() -> float:
        total = 0.0
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_full_info().pss / 2**20
            except psutil.NoSuchProcess:
                continue
        return total

    over, before = threading.Event(), now()
    found = {"peak": before, "more": 0.0}

    def look() -> None:
        while not over.wait(0.2):
            found["peak"] = round(max(found["peak"], now()), 1)
            found["more"] = round(found["peak"] - before, 1)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()


@contextmanager
def gateway(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A gateway as `anneal gateway` starts it, without limits on requests."""
    port = free_port()
    code = ("from deployments.gateway import limits, __main__ as service\n"
            "limits.A_MINUTE.update(predict=10**9, other=10**9)\nservice.main()")
    environment = {"ANNEAL_HOME": str(home), "ANNEAL_API_KEY": KEY, "ANNEAL_GATEWAY_PORT": str(port),
                   "ANNEAL_PREFECT_URL": "http://127.0.0.1:9/api", "ANNEAL_MLFLOW_URI": "http://127.0.0.1:9"}
    with started([sys.executable, "-c", code], environment, f"http://127.0.0.1:{port}/health/ready") as process:
        yield f"http://127.0.0.1:{port}", process


@contextmanager
def bare(answer: dict[str, Any]) -> Iterator[str]:
    """The same two routes on FastAPI alone."""
    port = free_port()
    command = [sys.executable, "-c", BARE, str(port), json.dumps(answer)]
    with started(command, {}, f"http://127.0.0.1:{port}/v1/trainings/x"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def started(command: list[str], environment: dict[str, str], url: str) -> Iterator[psutil.Process]:
    """A process that answers, ended afterwards."""
    others = ("ANNEAL_", "PREFECT_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    process = subprocess.Popen(command, cwd=ROOT, env={**kept, **environment, "PYTHONPATH": str(ROOT)},
                               stderr=subprocess.DEVNULL)
    try:
        wait_until_responds(url, 120)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()

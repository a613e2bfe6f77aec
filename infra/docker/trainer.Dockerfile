# Flows, trainings and the predictor on NVIDIA GPUs.
# docker build --file infra/docker/trainer.Dockerfile --tag anneal-trainer .
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime

WORKDIR /opt/anneal
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY infra ./infra
COPY tasks ./tasks
COPY flows ./flows
COPY deployments ./deployments
# The image brings torch for CUDA; the constraint on it is for machines that install it themselves.
RUN grep -v "^torch==" constraints.txt > /tmp/constraints.txt \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt --editable ".[gpu,team]" \
    && useradd --uid 10001 --create-home --home-dir /var/lib/anneal anneal \
    && install -d -o anneal -g anneal /var/lib/anneal/prefect
USER anneal
ENV PYTHONUNBUFFERED=1 DO_NOT_TRACK=1 ANNEAL_HOME=/var/lib/anneal

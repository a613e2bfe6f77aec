# Prefect server, MLflow server, and workers that only start containers or jobs elsewhere: no torch, no CUDA.
# docker build --file infra/docker/server.Dockerfile --tag anneal-server .
FROM python:3.11-slim

WORKDIR /opt/anneal
COPY constraints.txt ./
COPY infra/docker/mlflow-auth.ini ./infra/docker/
RUN pip install --no-cache-dir --constraint constraints.txt \
        "prefect>=3.8.8,<3.9" "fastapi>=0.139,<0.151" "sqlalchemy>=2.0.40,<2.1" "mlflow[auth]>=3.17,<3.18" boto3 \
        psycopg2-binary prefect-docker prefect-kubernetes \
    && useradd --uid 10001 --create-home --home-dir /var/lib/anneal anneal \
    && install -d -o anneal -g anneal /var/lib/anneal/prefect
USER anneal
ENV PYTHONUNBUFFERED=1 DO_NOT_TRACK=1 PREFECT_HOME=/var/lib/anneal/prefect

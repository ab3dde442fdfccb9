# v2f for Kubernetes and for any machine with a container runtime:   docker build -t v2f:0.1.0 .
# The wheels of torch bring CUDA 13 with them; of a GPU's machine only the driver is needed, 580 or newer. Several GB,
# nearly all of it those wheels. A build that repeats to the bit pins the base by its digest, too (@sha256:...), which a
# registry tells.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/v2f
WORKDIR /app
# First what changes rarely: the dependencies, at the versions that CI tests, without those of development.
COPY pyproject.toml constraints.txt LICENSE ./
COPY v2f/__init__.py v2f/__init__.py
RUN /opt/v2f/bin/pip install -c constraints.txt -e '.[serve,server]'

FROM python:3.11.14-slim-bookworm
RUN groupadd --gid 10001 v2f && useradd --uid 10001 --gid v2f --no-create-home --shell /usr/sbin/nologin v2f
COPY --from=build /opt/v2f /opt/v2f
WORKDIR /app
COPY LICENSE ./
COPY launch launch
COPY mlflow mlflow
COPY shards shards
COPY v2f v2f
# The root file system is read-only where it runs.
RUN /opt/v2f/bin/python -m compileall -q v2f
ENV PATH=/opt/v2f/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# What NVIDIA's runtime gives a container of its driver: CUDA and nvidia-smi.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
CMD ["v2f", "--help"]

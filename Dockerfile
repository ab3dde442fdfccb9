# v2f for Kubernetes and for any machine with a container runtime:   docker build -t v2f:0.1.0 .
# The torch wheels include CUDA 13; a GPU machine needs only the driver, 580 or newer. The image has several GB, nearly
# all of it those wheels. For a bit-exact build, also pin the base image by its digest (@sha256:...), from a registry.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/v2f
WORKDIR /app
# First what rarely changes: the dependencies, at the versions that CI tests, without the development ones.
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
# The root file system is read-only at run time.
RUN /opt/v2f/bin/python -m compileall -q v2f
ENV PATH=/opt/v2f/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The parts of the driver that NVIDIA's runtime adds to the container: CUDA and nvidia-smi.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
CMD ["v2f", "--help"]

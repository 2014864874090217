# The images of pinspect: `docker build --target station .`; other targets: pipeline, gpu (docs/containers.md).
ARG UID=1000

FROM python:3.11-slim-bookworm AS base
ARG UID
RUN useradd --no-log-init --uid "${UID}" --create-home pinspect \
 && install --directory --owner pinspect /project /artifacts
ENV PATH=/opt/pinspect/bin:$PATH PYTHONUNBUFFERED=1

# As in the Makefile, PyTorch comes first and without a hash; all that it requires is locked by hash.
FROM base AS torch
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
RUN python -m venv /opt/pinspect
COPY requirements-torch.txt ./
RUN pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" --requirement requirements-torch.txt

FROM torch AS station-packages
COPY requirements-station.lock ./
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements-station.lock

# The context is what .dockerignore lets through: the package, and the files of a new project.
FROM station-packages AS wheel
COPY . ./
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel .

FROM station-packages AS station-install
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps /wheel/*.whl && pip check

FROM torch AS pipeline-install
COPY requirements.lock ./
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.lock
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps /wheel/*.whl && pip check

# PyTorch's default build brings its CUDA libraries.
FROM base AS gpu-install
WORKDIR /build
RUN python -m venv /opt/pinspect
COPY requirements-torch.txt requirements-gpu.lock ./
RUN pip install --no-cache-dir --requirement requirements-torch.txt \
 && pip install --no-cache-dir --no-deps --require-hashes --requirement requirements-gpu.lock
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps /wheel/*.whl && pip check

# DVC and the flows need git, and ssh for a remote repository.
FROM base AS tools
RUN apt-get update \
 && apt-get install --yes --no-install-recommends 'git=1:2.39.*' 'openssh-client=1:9.2p1-*' \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /project
VOLUME /project

# All stages, flows and servers, on a GPU. Triton compiles its kernels with gcc.
FROM tools AS gpu
RUN apt-get update \
 && apt-get install --yes --no-install-recommends 'gcc=4:12.2.*' 'libc6-dev=2.36-*' \
 && rm -rf /var/lib/apt/lists/*
COPY --from=gpu-install /opt/pinspect /opt/pinspect
ARG UID
USER ${UID}
CMD ["pinspect", "doctor"]

# All stages, flows and servers, on CPUs.
FROM tools AS pipeline
COPY --from=pipeline-install /opt/pinspect /opt/pinspect
ARG UID
USER ${UID}
CMD ["pinspect", "doctor"]

# Inspects with a registered version. The station asks for PINSPECT_STATION_TOKEN, because it listens beyond loopback.
FROM base AS station
COPY --from=station-install /opt/pinspect /opt/pinspect
ARG UID
USER ${UID}
WORKDIR /project
VOLUME /project
EXPOSE 8000
HEALTHCHECK --start-period=2m --interval=15s --timeout=10s \
  CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000); c.request('GET', '/health'); exit(c.getresponse().status != 200)"]
CMD ["pinspect", "station", "--host", "0.0.0.0", "--port", "8000"]

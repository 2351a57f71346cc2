# The server, for CPU and for CUDA. From the repository's root:
#   docker build -f deploy/docker/server.Dockerfile --target cpu -t heron-server:0.1.0 .
#   docker build -f deploy/docker/server.Dockerfile --target cuda -t heron-server:0.1.0-cuda .
# Where an image has to be the same bytes for ever, give the base by digest too: --build-arg PYTHON_IMAGE=python:3.11.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS source
WORKDIR /source
RUN python -m venv /opt/heron
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY proto proto
COPY common common
COPY server server
COPY edge_client edge_client

FROM source AS build-cpu
# PyPI's torch brings CUDA's libraries, gigabytes that a CPU has no use for: give the index of torch's CPU builds that its installation page names.
ARG TORCH_INDEX_URL=""
RUN /opt/heron/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch \
    && /opt/heron/bin/pip install --no-cache-dir -c constraints.txt '.[server,digits,text,images,tensorboard]'

FROM source AS build-cuda
RUN /opt/heron/bin/pip install --no-cache-dir -c constraints.txt torch \
    && /opt/heron/bin/pip install --no-cache-dir -c constraints.txt '.[server,digits,text,images,tensorboard]'

FROM ${PYTHON_IMAGE} AS runtime
# Folders that volumes are mounted on belong to the user already, or an empty volume would be root's.
RUN groupadd --system --gid 10001 heron \
    && useradd --system --uid 10001 --gid heron --home-dir /var/lib/heron --no-create-home --shell /usr/sbin/nologin heron \
    && install -d -o heron -g heron -m 0700 /var/lib/heron /etc/heron/tls
ENV PATH=/opt/heron/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HERON_SERVER_LISTEN=0.0.0.0:50051 \
    HERON_SERVER_METRICS_HOST=0.0.0.0 \
    HERON_SERVER_RUN_DIR=/var/lib/heron/run \
    HERON_SERVER_RESUME_IF_BEGUN=yes \
    XDG_CACHE_HOME=/var/lib/heron/cache
VOLUME /var/lib/heron
EXPOSE 50051 9464
USER 10001:10001
WORKDIR /var/lib/heron
# The metrics endpoint is up as soon as the programs are compiled. gRPC's own health wants a certificate: `heron health` asks for it where there is one.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m --retries=3 CMD ["heron", "status", "127.0.0.1:9464", "--once"]
ENTRYPOINT ["heron-server"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/heron /opt/heron
# The driver comes from the host, by the NVIDIA container toolkit; CUDA's libraries came with torch.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
COPY --from=build-cpu /opt/heron /opt/heron

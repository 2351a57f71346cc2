# The lean client: no torch, no compiler. From the repository's root:
#   docker build -f deploy/docker/client.Dockerfile -t heron-client:0.1.0 .
# EXTRAS are the data that it reads beside arrays and tables: text, images, digits.
ARG PYTHON_IMAGE=python:3.11.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=text,images
WORKDIR /source
RUN python -m venv /opt/heron
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY proto proto
COPY common common
COPY server server
COPY edge_client edge_client
RUN /opt/heron/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM ${PYTHON_IMAGE} AS client
RUN groupadd --system --gid 10001 heron \
    && useradd --system --uid 10001 --gid heron --home-dir /var/lib/heron-client --no-create-home --shell /usr/sbin/nologin heron \
    && install -d -o heron -g heron -m 0700 /var/lib/heron-client /etc/heron/tls
COPY --from=build /opt/heron /opt/heron
ENV PATH=/opt/heron/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HERON_CLIENT_STATE_DIR=/var/lib/heron-client \
    HERON_CLIENT_METRICS_HOST=0.0.0.0 \
    HERON_CLIENT_METRICS_PORT=9465
VOLUME /var/lib/heron-client
EXPOSE 9465
USER 10001:10001
WORKDIR /var/lib/heron-client
HEALTHCHECK --interval=30s --timeout=10s --start-period=1m --retries=3 CMD ["heron", "status", "127.0.0.1:9465", "--once"]
ENTRYPOINT ["heron-client"]

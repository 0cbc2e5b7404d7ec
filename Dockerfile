# Stage one builds the wheel and a virtual environment from hash-pinned requirements, stage two holds nothing but that, in two layers:
# what is depended on, which changes rarely, and the code. Nothing is resolved: what is not in a lock is not installed.
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements.txt tools/requirements/build.txt ./
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r build.txt \
    && python -m venv --without-pip /opt/mcp-sidecar \
    && pip --python /opt/mcp-sidecar/bin/python install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY mcp_sidecar ./mcp_sidecar
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist . \
    && pip --python /opt/mcp-sidecar/bin/python install --no-cache-dir --no-deps --no-index --root /code /dist/*.whl \
    && PYTHONPATH="$(echo /code/opt/mcp-sidecar/lib/python*/site-packages)" /opt/mcp-sidecar/bin/python -m mcp_sidecar --version \
    && mkdir /state

FROM python:3.13-slim
LABEL org.opencontainers.image.title="mcp-sidecar" \
    org.opencontainers.image.description="A reverse proxy that heals MCP sessions" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/mcp-sidecar /opt/mcp-sidecar
COPY --from=build /code/opt/mcp-sidecar /opt/mcp-sidecar
# Where sessions are kept: a volume of this name outlives the container, and takes its owner and mode from here.
COPY --from=build --chown=65532:65532 --chmod=0700 /state /var/lib/mcp-sidecar
ENV PATH="/opt/mcp-sidecar/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_STATE_HOME=/var/lib \
    MCP_SIDECAR_LISTEN=0.0.0.0:8080 \
    MCP_SIDECAR_ADMIN=0.0.0.0:9464
# Numeric, so that Kubernetes' runAsNonRoot can tell without reading /etc/passwd.
USER 65532:65532
EXPOSE 8080 9464
# Asks the listener of MCP_SIDECAR_ADMIN; where that is "off" there is nobody to ask: run with --no-healthcheck. Builders that write
# OCI images drop it; orchestrators ask /readyz themselves.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["/opt/mcp-sidecar/bin/mcp-sidecar", "health"]
ENTRYPOINT ["/opt/mcp-sidecar/bin/mcp-sidecar"]

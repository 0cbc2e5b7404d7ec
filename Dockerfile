# Stage one builds a virtual environment from hash-pinned requirements, stage two holds nothing else.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/mcp-sidecar
COPY requirements.txt ./
RUN /opt/mcp-sidecar/bin/pip install --no-cache-dir --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY mcp_sidecar ./mcp_sidecar
RUN /opt/mcp-sidecar/bin/pip install --no-cache-dir --no-deps .

FROM python:3.13-slim
COPY --from=build /opt/mcp-sidecar /opt/mcp-sidecar
ENV PATH="/opt/mcp-sidecar/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MCP_SIDECAR_LISTEN=0.0.0.0:8080 \
    MCP_SIDECAR_ADMIN=0.0.0.0:9464
# Numeric, so that Kubernetes' runAsNonRoot can tell without reading /etc/passwd.
USER 65532:65532
EXPOSE 8080 9464
# Asks the port of MCP_SIDECAR_ADMIN; where that is "off" there is nobody to ask: run with --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/opt/mcp-sidecar/bin/python", "-c", "import http.client, os, sys; admin = http.client.HTTPConnection('127.0.0.1', int(os.environ['MCP_SIDECAR_ADMIN'].rpartition(':')[2]), timeout=2); admin.request('GET', '/livez'); sys.exit(admin.getresponse().status != 200)"]
ENTRYPOINT ["/opt/mcp-sidecar/bin/mcp-sidecar"]

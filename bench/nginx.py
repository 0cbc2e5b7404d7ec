"""The two nginx of the bench: the reverse proxy that everybody is compared with, and the upstream that is never the limit."""

from __future__ import annotations

import getpass
import os
from typing import Any, Final
from urllib.parse import urlsplit

from bench import work

COMMON: Final = """
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile {descriptors};
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    client_max_body_size 0;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    proxy_request_buffering off;
    proxy_read_timeout 3600s;
    upstream behind {{
        server {behind};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {locations}
    }}
}}
"""
PROXY: Final = """
        location / { proxy_pass http://behind; }
"""
# The id in its answers is the request's length, since nginx does not read bodies (work.LEAST_ID); what has no header that
# says the kind (a session's first requests, proxies that do not pass headers on) is for the upstream that does. The filter
# has nothing to replace: it makes the stream's length unknown, as that of a stream is.
UPSTREAM: Final = """
        location = {endpoint} {{
            if ($http_{kind} = "json") {{ rewrite ^ /answer-json last; }}
            if ($http_{kind} = "sse") {{ rewrite ^ /answer-sse last; }}
            if ($http_{kind} = "list") {{ rewrite ^ /answer-list last; }}
            proxy_pass http://behind;
        }}
        location = /answer-json {{
            internal;
            default_type application/json;
            return 200 '{json}';
        }}
        location = /answer-list {{
            internal;
            default_type application/json;
            return 200 '{tools}';
        }}
        location = /answer-sse {{
            internal;
            default_type text/event-stream;
            sub_filter_types text/event-stream;
            sub_filter "nothing to replace" "";
            return 200 'event: message\\r\\ndata: {json}\\r\\n\\r\\n';
        }}
"""


def proxy(folder: str, port: int, upstream_url: str, descriptors: int) -> str:
    """Return the configuration of a reverse proxy: one worker, connections to the upstream kept, nothing buffered."""
    return _config(folder, port, upstream_url, descriptors, PROXY)


def upstream(folder: str, port: int, scripted_url: str, descriptors: int) -> str:
    """Return the configuration of the fast upstream, with the scripted one behind it."""
    locations = UPSTREAM.format(
        endpoint=work.ENDPOINT,
        kind=work.KIND_HEADER.lower().replace("-", "_"),
        json=_answer(work.result(work.TEXT)),
        tools=_answer(work.tools()),
    )
    return _config(folder, port, scripted_url, descriptors, locations)


def _answer(result: dict[str, Any]) -> str:
    return work.response("#", result).decode().replace('"#"', "$content_length")


def _config(folder: str, port: int, behind_url: str, descriptors: int, locations: str) -> str:
    return COMMON.format(
        user=f"user {getpass.getuser()};" if os.getuid() == 0 else "",
        descriptors=descriptors,
        # When only a sixteenth is left nginx begins to close connections that have not sent anything yet.
        connections=descriptors + descriptors // 8,
        folder=folder,
        behind=urlsplit(behind_url).netloc,
        port=port,
        locations=locations,
    )

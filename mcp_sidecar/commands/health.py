"""Ask a sidecar that runs on this machine whether it is ready: the health check of a container.

An address that stands for all of this machine's is asked on loopback, where everything is answered.
"""

from __future__ import annotations

import http.client
import sys

WITHIN_S = 4.0
_NEAR = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound


def run(admin: tuple[str, int] | None) -> int:
    """Exit status 0 if the admin listener at ``admin`` says that the sidecar is ready, else 1 and a line that says why."""
    if admin is None:
        return _not_ready("admin.address is off, and nobody else can be asked")
    host, port = admin
    connection = http.client.HTTPConnection(_NEAR.get(host, host), port, timeout=WITHIN_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        said = answer.read(200).decode("ascii", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return _not_ready(f"no answer at admin.address: {getattr(error, 'strerror', None) or 'no HTTP'}")
    finally:
        connection.close()
    return 0 if answer.status == http.client.OK else _not_ready(said)


def _not_ready(why: str) -> int:
    sys.stderr.write(f"not ready: {why}\n")
    return 1

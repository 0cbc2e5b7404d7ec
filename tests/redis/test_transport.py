"""Redis behind TLS, and behind Sentinels that name another one."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from mcp_sidecar.commands.dev.ports import free_port
from mcp_sidecar.sessions.stores.redis import RedisStore
from mcp_sidecar.sessions.stores.store import Entry, Key, StoreAway, StoreUnusable
from tests.support.certificates import make_certificate
from tests.support.redis_server import NEEDS_REDIS, PROGRAM, RedisServer, redis_server
from tests.support.waiting import HANG_S

pytestmark = NEEDS_REDIS

KEY, ENTRY = Key(b"session", b"alice"), Entry(1, b"w", b"data")


def store_of(url: str, timeout_s: float = HANG_S) -> RedisStore:
    return RedisStore(url, namespace="test", timeout_s=timeout_s, claims_ttl_s=1000, warn=lambda _: None)


def _speaks_tls() -> bool:
    if PROGRAM is None:
        return False
    said = subprocess.run([PROGRAM, "--tls-port", "x"], capture_output=True, text=True, check=False)
    return "not a recognized" not in said.stdout + said.stderr and "Bad directive" not in said.stdout + said.stderr


@pytest.mark.skipif(not _speaks_tls(), reason="this redis-server was built without TLS")
@pytest.mark.parametrize("is_trusted", [True, False])
async def test_tls(tmp_path: Path, is_trusted: bool) -> None:
    """`rediss://` with the authority in its query; a certificate that is not trusted is said at the start, in one line."""
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-auth-clients", "no")
    async with redis_server(tmp_path, "--tls-port", str(port), *files, "--tls-ca-cert-file", str(certificate)):
        authority = certificate if is_trusted else make_certificate(tmp_path, "other")[0]
        store = store_of(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}")
        try:
            if is_trusted:
                await store.open()
                assert await store.put(KEY, ENTRY, expected=0, ttl_s=100) is None
            else:
                with pytest.raises(StoreUnusable, match="not trusted"):
                    await store.open()
        finally:
            await store.close()


class Sentinel(RedisServer):
    """`redis-server --sentinel`, which watches one master under the name `sessions`."""

    def __init__(self, folder: Path, master: RedisServer) -> None:
        super().__init__(folder)
        self._options = (str(folder / "sentinel.conf"), "--sentinel")
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            f"sentinel monitor sessions 127.0.0.1 {master.port} 1",
            "sentinel down-after-milliseconds sessions 200",
            "sentinel failover-timeout sessions 2000",
        ]
        (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
        self.ready_line = "+monitor master sessions"


async def test_sentinel(tmp_path: Path) -> None:
    """The master is asked for by its name; once it is dead, the replica that was promoted is found."""
    for name in ("one", "two", "watcher"):
        (tmp_path / name).mkdir()
    async with redis_server(tmp_path / "one") as master, redis_server(tmp_path / "two") as replica:
        await replica.say("REPLICAOF", "127.0.0.1", str(master.port))
        sentinel = Sentinel(tmp_path / "watcher", master)
        await sentinel.start()
        store = store_of(f"redis+sentinel://127.0.0.1:{sentinel.port}/sessions/0", timeout_s=5)
        try:
            await store.open()
            assert await store.put(KEY, ENTRY, expected=0, ttl_s=1000) is None
            async with asyncio.timeout(HANG_S):
                while await replica.say("DBSIZE") != ":1":
                    pass
                while "slaves=1" not in await sentinel.info("sentinel"):
                    pass
                await master.kill()
                while await _read(store) != {b"alice": ENTRY}:
                    pass
                assert await store.put(KEY, Entry(2, b"w", b"more"), expected=1, ttl_s=1000) is None
        finally:
            await store.close()
            await sentinel.kill()


async def _read(store: RedisStore) -> object:
    try:
        return await store.get(KEY.session)
    except StoreAway:
        await asyncio.sleep(0.01)
        return None

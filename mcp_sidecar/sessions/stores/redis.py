"""``redis://``: records in Redis or Valkey, which replicas share.

The rule of this file: whatever depends on what stands there is one script, by the server's own clock, so that nothing comes
in between. A value is ``revision:expires:writer:`` in text, ``D`` and the data behind it, or ``E`` for one that has ended;
times are milliseconds. All of a session is one key, whose name is in braces: it is in one slot. Replicas are never read: one
that is behind knows less. What expires by idleness is forgotten, and is unknown from then on.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from mcp_sidecar.sessions.stores.store import (
    ABSENT,
    Claim,
    Entry,
    Key,
    Lease,
    StoreAway,
    StoreUnusable,
    StoreUnwritable,
    Touch,
    Turn,
)

try:
    from redis import asyncio as redis
    from redis import exceptions
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import NoBackoff
except ImportError:  # the extra `redis` is not installed
    redis = None  # type: ignore[assignment]

T = TypeVar("T")

CONNECTIONS: Final = 32
_SENTINEL_PORT: Final = 26_379
_READ_ONLY: Final = "-READONLY "
_NOBODY: Final = Key(b"nobody", b"nobody")

_NOW: Final = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "
_STANDING: Final = (
    "local v = redis.call('HGET', KEYS[1], ARGV[1]) "
    "local revision, expires = 0, 0 "
    "if v then local r, e = string.match(v, '^(%d+):(%d+):') revision, expires = tonumber(r), tonumber(e) "
    "if expires <= now then v, revision = false, 0 end end "
)
_KEEP: Final = (
    "local left = redis.call('PTTL', KEYS[1]) "
    "if left < 0 or now + left < until_ms then redis.call('PEXPIRE', KEYS[1], until_ms - now) end "
)
_GET: Final = (
    _NOW + "local found = {} local all = redis.call('HGETALL', KEYS[1]) "
    "for i = 1, #all, 2 do local e = string.match(all[i + 1], '^%d+:(%d+):') "
    "if tonumber(e) > now then found[#found + 1] = all[i] found[#found + 1] = all[i + 1] end end "
    "return found"
)
# field, expected, revision, writer, time to live, D with the data or E; claim and its time to live
_PUT: Final = (
    _NOW + _STANDING + "if revision ~= tonumber(ARGV[2]) then return v or '' end "
    "local until_ms = now + tonumber(ARGV[5]) "
    "local head = ARGV[3] .. ':' .. string.format('%.0f', until_ms) .. ':' .. ARGV[4] .. ':' "
    "redis.call('HSET', KEYS[1], ARGV[1], head .. ARGV[6]) "
    + _KEEP
    + "if KEYS[2] then redis.call('SET', KEYS[2], ARGV[7], 'PX', ARGV[8]) end return nil"
)
# field, revision, time to live
_TOUCH: Final = (
    _NOW + _STANDING + "if not v or revision < tonumber(ARGV[2]) or revision == 0 then return 0 end "
    "local r, w, rest = string.match(v, '^(%d+):%d+:(%x*):(.*)$') "
    "if string.sub(rest, 1, 1) ~= 'D' then return 0 end "
    "local until_ms = math.max(expires, now + tonumber(ARGV[3])) "
    "redis.call('HSET', KEYS[1], ARGV[1], r .. ':' .. string.format('%.0f', until_ms) .. ':' .. w .. ':' .. rest) "
    + _KEEP
    + "return 1"
)
# field; writer, time to live
_LEASE: Final = (
    _NOW + _STANDING + "local l = redis.call('GET', KEYS[2]) if l and l ~= ARGV[2] then return {0, revision} end "
    "redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) return {1, revision}"
)
# writer
_GIVE_BACK: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
# fresh, what it replaces
_FIRST: Final = (
    "local v = redis.call('GET', KEYS[1]) "
    "if not v or (ARGV[2] ~= '' and v == ARGV[2]) then redis.call('SET', KEYS[1], ARGV[1]) return ARGV[1] end return v"
)


class RedisStore:
    """Records in one Redis."""

    outlives_process = True

    def __init__(
        self, url: str, *, namespace: str, timeout_s: float, claims_ttl_s: float, warn: Callable[[str], None]
    ) -> None:
        """Raises ``StoreUnusable`` where the URL or the library is not right. ``warn`` is told what to set in that Redis."""
        if redis is None:
            raise StoreUnusable("redis: needs a library: install mcp-sidecar[redis]")
        self._shown = _shown(url)
        try:
            self._client = _client(url, timeout_s)
        except (ValueError, TypeError, OSError) as error:
            raise StoreUnusable(f"{self._shown}: {_without_url(error)}") from None
        self._prefix = f"mcps1:{{{namespace}"
        self._claims_ttl_s = claims_ttl_s
        self._warn = warn
        script = self._client.register_script
        self._get, self._put = script(_GET), script(_PUT)
        self._touch, self._secret = script(_TOUCH), script(_FIRST)
        self._lease, self._give_back = script(_LEASE), script(_GIVE_BACK)

    def __str__(self) -> str:
        """As in ``sessions.store``, without user and password."""
        return self._shown

    async def open(self) -> None:
        """Look whether it lets us in. Raises ``StoreUnusable``; one that is only away comes back by itself."""
        try:
            with suppress(StoreAway):
                await self._do(self._look)
        except StoreUnusable:
            await self.close()
            raise

    async def _look(self) -> None:
        try:
            await self._client.ping()
            claim = self._of_claim(Claim(_NOBODY.session, _NOBODY.session))
            await self._put(
                keys=[self._of(_NOBODY.session), claim], args=[_NOBODY.principal.hex(), -1]
            )  # writes nothing
        except (exceptions.AuthenticationError, exceptions.NoPermissionError) as error:
            raise StoreUnusable(f"{self._shown}: it does not let us in ({type(error).__name__})") from None
        except (exceptions.ClusterCrossSlotError, exceptions.MovedError):
            raise StoreUnusable(f"{self._shown}: it is a cluster, and only a single Redis can be used") from None
        except exceptions.ConnectionError as error:
            if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
                raise StoreUnusable(f"{self._shown}: its certificate is not trusted") from None
            raise
        with suppress(exceptions.ResponseError):  # not everybody may ask
            policy = (await self._client.config_get("maxmemory-policy")).get("maxmemory-policy")
            if policy not in (None, "noeviction", b"noeviction"):
                self._warn("it may forget sessions when its memory is full: set maxmemory-policy to noeviction")

    async def close(self) -> None:
        """Let go of all connections."""
        asked = getattr(self._client.connection_pool, "sentinel_manager", None)
        for client in (self._client, *(asked.sentinels if asked is not None else ())):
            with suppress(exceptions.RedisError, OSError):
                await client.aclose(close_connection_pool=True)

    async def get(self, session: bytes) -> Mapping[bytes, Entry]:
        """All entries of one session id."""
        found = await self._do(lambda: self._get(keys=[self._of(session)]))
        return {
            bytes.fromhex(field.decode()): _entry(value) for field, value in zip(found[::2], found[1::2], strict=True)
        }

    async def put(
        self, key: Key, entry: Entry, *, expected: int, ttl_s: float, claim: Claim | None = None
    ) -> Entry | None:
        """Compare and set."""
        data = b"E" if entry.data is None else b"D" + entry.data
        keys = [self._of(key.session)] + ([self._of_claim(claim)] if claim is not None else [])
        arguments: list[Any] = [key.principal.hex(), expected, entry.revision, entry.writer.hex(), _ms(ttl_s), data]
        if claim is not None:
            arguments += [f"{key.session.hex()}:{key.principal.hex()}", _ms(self._claims_ttl_s)]
        standing = await self._change(lambda: self._put(keys=keys, args=arguments))
        if standing is None:
            return None
        return _entry(standing) if standing else ABSENT

    async def touch(self, touches: Sequence[Touch]) -> Sequence[Key]:
        """Put off the expiry of many in one go."""
        answers = await self._change(lambda: self._touch_all(touches))
        return [one.key for one, is_there in zip(touches, answers, strict=True) if not is_there]

    async def _touch_all(self, touches: Sequence[Touch]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipe:
            for one in touches:
                arguments: list[Any] = [one.key.principal.hex(), one.revision, _ms(one.ttl_s)]
                await self._touch(keys=[self._of(one.key.session)], args=arguments, client=pipe)
            answers: list[Any] = await pipe.execute()
        return answers

    async def holder(self, claim: Claim) -> Key | None:
        """Whose the upstream id is."""
        found: Any = await self._do(lambda: self._client.get(self._of_claim(claim)))
        if found is None:
            return None
        session, _, principal = found.decode().partition(":")
        return Key(bytes.fromhex(session), bytes.fromhex(principal))

    async def lease(self, lease: Lease, *, ttl_s: float) -> Turn:
        """Whose turn it is; one's own is one's own again."""
        keys = [self._of(lease.key.session), self._of_lease(lease)]
        arguments: list[Any] = [lease.key.principal.hex(), lease.writer.hex(), _ms(ttl_s)]
        is_own, revision = await self._change(lambda: self._lease(keys=keys, args=arguments))
        return Turn(bool(is_own), revision)

    async def give_back(self, lease: Lease) -> None:
        """The work is done."""
        place = self._of_lease(lease)
        await self._change(lambda: self._give_back(keys=[place], args=[lease.writer.hex()]))

    async def secret(self, name: str, fresh: bytes, *, replaces: bytes | None = None) -> bytes:
        """The first one stays, unless it is the one to be replaced."""
        place = f"{self._prefix}}}:secret:{name}"
        kept: bytes = await self._change(lambda: self._secret(keys=[place], args=[fresh, replaces or b""]))
        return kept

    async def sweep(self) -> None:
        """Redis forgets what has expired by itself."""

    def _of(self, session: bytes) -> str:
        return f"{self._prefix}:{session.hex()}}}"

    def _of_lease(self, lease: Lease) -> str:
        return f"{self._of(lease.key.session)}:lease:{lease.instance.hex()}:{lease.key.principal.hex()}"

    def _of_claim(self, claim: Claim) -> str:
        return f"{self._prefix}}}:claim:{claim.instance.hex()}:{claim.upstream_id.hex()}"

    async def _change(self, work: Callable[[], Awaitable[T]]) -> T:
        """What it refuses to write it can still be asked for: it has no room on its disk, or too few replicas."""
        try:
            return await self._do(work)
        except _Refused as refused:
            raise StoreUnwritable(str(refused)) from None

    async def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Whatever it cannot do is said in our words; where it has become another's replica the connections are made anew."""
        try:
            return await work()
        except exceptions.OutOfMemoryError:
            raise StoreUnwritable("its memory is full") from None
        except (exceptions.ReadOnlyError, exceptions.MasterDownError, exceptions.ClusterDownError) as error:
            await self._client.connection_pool.disconnect(inuse_connections=False)
            raise StoreAway(_REASONS[type(error)]) from None
        except exceptions.ResponseError as error:
            if _READ_ONLY in str(error):  # before Redis 7 a script told so within an error of its own
                await self._client.connection_pool.disconnect(inuse_connections=False)
                raise StoreAway(_REASONS[exceptions.ReadOnlyError]) from None
            raise _Refused(_REASONS.get(type(error), _REASONS[exceptions.ResponseError])) from None
        except exceptions.RedisError as error:
            raise StoreAway(_REASONS.get(type(error), "it cannot be reached")) from None
        except OSError:
            raise StoreAway("it cannot be reached") from None


class _Refused(StoreAway):
    """It has answered, with an error: it is there."""


_REASONS: Final[dict[type[BaseException], str]] = (
    {}
    if redis is None
    else {
        exceptions.ReadOnlyError: "it is read-only",
        exceptions.MasterDownError: "it has lost its master",
        exceptions.ClusterDownError: "its cluster is down",
        exceptions.BusyLoadingError: "it is still loading",
        exceptions.TimeoutError: "it did not answer in time",
        exceptions.AuthenticationError: "it does not let us in",
        exceptions.NoPermissionError: "it does not let us do that",
        exceptions.ResponseError: "it answered with an error",
    }
)


def _client(url: str, timeout_s: float) -> redis.Redis:
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "protocol": 2,
    }
    scheme, _, rest = url.partition(":")
    if scheme.lower() == "redis+sentinel":
        return _behind_sentinels(url, options)
    if scheme.lower() == "redis+unix":
        url = f"unix:{rest}"
    pool = redis.BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=None, **options)
    pool.connection_class(**pool.connection_kwargs)  # what its query has and nobody knows is found here
    return redis.Redis(connection_pool=pool)


def _behind_sentinels(url: str, options: dict[str, Any]) -> redis.Redis:
    """``redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]``."""
    parts = urlsplit(url)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    nodes = [_node(host) for host in hosts.split(",") if host]
    if not nodes or not service:
        raise ValueError("must be redis+sentinel://host,host/service/db")
    sentinel: Any = Sentinel(nodes, sentinel_kwargs=dict(options), **options)  # type: ignore[no-untyped-call]
    named = {"username": unquote(user) or None, "password": unquote(password) or None}
    more = {**named, **dict(parse_qsl(parts.query))}
    client: redis.Redis = sentinel.master_for(service, db=int(database or 0), max_connections=CONNECTIONS, **more)
    return client


def _node(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon else (text, _SENTINEL_PORT)


def _shown(url: str) -> str:
    """Where it is, and nothing that may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _without_url(error: Exception) -> str:
    return "is not a URL of Redis" if "://" in str(error) else str(error)


def _entry(value: bytes) -> Entry:
    revision, _, writer, rest = value.split(b":", 3)
    return Entry(int(revision), bytes.fromhex(writer.decode()), rest[1:] if rest[:1] == b"D" else None)


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))

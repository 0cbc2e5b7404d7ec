"""The settings as one frozen tree, and the values that it hands down.

The law of this file: nothing below ``app`` sees ``Settings``; it gets the small frozen records made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TypeVar

from pydantic import BaseModel, PrivateAttr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from mcp_sidecar.config import KEEP_ALIVE_S, Limits, ListenConfig, SessionLimits, StoreConfig, UpstreamConfig
from mcp_sidecar.healing.policy import Mode, Policy
from mcp_sidecar.settings.sections import (
    AdminSection,
    HealingSection,
    LimitsSection,
    ListenSection,
    LogSection,
    SessionsSection,
    UpstreamSection,
)
from mcp_sidecar.settings.values import Address, HttpUrl

DEFAULT_ENDPOINT = "/mcp"
_ALL_INTERFACES = {"0.0.0.0", "::"}  # noqa: S104 - compared with, not bound
_LOOPBACK_NAMES = {"localhost", "127.0.0.1"}

Level = Mapping[str, Mapping[str, object]]
Value = TypeVar("Value")


class Settings(BaseSettings):
    """What the operator decided, all of it.

    Made from levels, the most important first; each maps a section to its keys. ``load`` makes the levels. Raises
    pydantic's ValidationError.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    upstream: UpstreamSection
    listen: ListenSection
    admin: AdminSection
    healing: HealingSection
    sessions: SessionsSection
    limits: LimitsSection
    log: LogSection
    _state_folder: str | None = PrivateAttr(None)

    def __init__(self, *levels: Level) -> None:
        # Empty sections make a missing URL a mistake of `upstream.url`, the key that people know.
        super().__init__(levels=(*levels, {section: {} for section in type(self).model_fields}))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic gives it
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic gives it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic gives it
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the given levels in their order and nothing else: pydantic's own sources stop at their first mistake."""
        return tuple(InitSettingsSource(settings_cls, dict(level)) for level in init_settings()["levels"])

    @field_validator("listen", mode="after")
    @classmethod
    def _apart_from_upstream(cls, listen: ListenSection, info: ValidationInfo) -> ListenSection:
        upstream = info.data.get("upstream")
        if upstream is not None and _reaches(upstream.url, listen.address):
            raise Misfit("address", "is where upstream.url points: the sidecar would be its own upstream")
        return listen

    @field_validator("admin", mode="after")
    @classmethod
    def _apart_from_listen(cls, admin: AdminSection, info: ValidationInfo) -> AdminSection:
        listen = info.data.get("listen")
        if listen is not None and listen.address.port and admin.address == listen.address:
            raise Misfit("address", "is taken by listen.address")
        return admin

    @field_validator("sessions", mode="after")
    @classmethod
    def _observes_no_tokens(cls, sessions: SessionsSection, info: ValidationInfo) -> SessionsSection:
        healing = info.data.get("healing")
        if healing is not None and healing.mode is Mode.OBSERVE and sessions.store == "sealed:":
            raise Misfit(
                "store", "is sealed:, which makes ids of its own: not with healing.mode observe, which changes nothing"
            )
        return sessions

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """Host and port of the admin listener; None where it is off."""
        address = self.admin.address
        return None if address is None else (address.host, address.port)

    @property
    def log_format(self) -> str | None:
        """``console`` or ``json``; None where the terminal decides."""
        return None if self.log.format is None else self.log.format.value

    @property
    def log_level(self) -> str:
        """``debug``, ``info``, ``warning`` or ``error``."""
        return self.log.level.value

    @property
    def has_chosen_max_sessions(self) -> bool:
        """Whether somebody asked for so many sessions, rather than the default."""
        return "max_sessions" in self.sessions.model_fields_set

    def policy(self) -> Policy:
        """Hand down what to do about a lost session."""
        healing = self.healing
        return _handed_down(
            Policy,
            healing,
            promises_lists=False,
            principal_headers=tuple(dict.fromkeys(name.lower() for name in healing.principal_headers)),
            signatures=tuple(
                row.signature(f"operator-{place}") for place, row in enumerate(healing.signatures, start=1)
            ),
        )

    def upstream_config(self) -> UpstreamConfig:
        """Hand down where the upstream is and how long to wait for it."""
        url = self.upstream.url
        path = url.path if url.path not in ("", "/") else DEFAULT_ENDPOINT
        return _handed_down(
            UpstreamConfig,
            self.upstream,
            keep_alive_s=KEEP_ALIVE_S,
            origin=url.origin,
            endpoint=self.upstream.endpoint or path,
        )

    def listen_config(self) -> ListenConfig:
        """Hand down where and for whom to listen."""
        address = self.listen.address
        return _handed_down(ListenConfig, self.listen, host=address.host, port=address.port)

    def limits_config(self) -> Limits:
        """Hand down the sizes."""
        return _handed_down(Limits, self.limits)

    def store_config(self) -> StoreConfig:
        """Hand down where sessions are kept."""
        sessions = self.sessions
        is_kept = self.healing.mode is Mode.HEAL or sessions.store != "auto"
        return StoreConfig(
            url=sessions.store if is_kept else "memory:",
            instance=sessions.instance,
            namespace=sessions.namespace,
            timeout_s=sessions.store_timeout,
            key_file=sessions.key_file,
            key=sessions.key,
            state_folder=self._state_folder,
        )

    def standing_in(self, environment: Mapping[str, str]) -> Settings:
        """The same, for a process of this environment."""
        state, home = environment.get("XDG_STATE_HOME", ""), environment.get("HOME", "")
        # What is not absolute counts for nothing (XDG Base Directory Specification).
        folder = state if state.startswith("/") else f"{home}/.local/state" if home.startswith("/") else None
        self._state_folder = f"{folder}/mcp-sidecar" if folder else None
        return self

    def session_limits(self) -> SessionLimits:
        """Hand down how long and how many sessions are remembered."""
        return _handed_down(SessionLimits, self.sessions)


def _handed_down(kind: type[Value], section: BaseModel, **made: object) -> Value:
    """A record of the values in ``section`` whose keys are its fields' names, ``_s`` for seconds aside, and of ``made``."""
    names = {field.name for field in fields(kind)} - made.keys()  # type: ignore[arg-type]
    return kind(**{name: getattr(section, name.removesuffix("_s")) for name in names}, **made)


class Misfit(ValueError):
    """A value that is right by itself and does not fit another section. ``key`` is the one to name."""

    def __init__(self, key: str, sentence: str) -> None:
        super().__init__(sentence)
        self.key = key


def _reaches(url: HttpUrl, address: Address) -> bool:
    if url.port != address.port:
        return False
    names = {url.host, *(_LOOPBACK_NAMES if url.host in _LOOPBACK_NAMES else ())}
    return address.host in names or (address.host in _ALL_INTERFACES and url.host in {*_LOOPBACK_NAMES, "::1"})

"""Names that are used where vulture does not look: a library calls them, or a test asks for them.

A name that nobody needs is removed where it stands, not added here.
"""

# asyncio calls these on a protocol or transport.
_.appendleft
_.handle_error
_.pause_writing
_.resume_writing

# aiohttp reads or calls these.
_._factory
_._rel_url
Light

# pydantic calls these, with these arguments.
_._apart_from_listen
_._apart_from_upstream
_._both_or_none
_._meant
_._named_apart
_.settings_customise_sources
dotenv_settings
env_settings
file_secret_settings
model_config

# Written down for readers: fields of rows and facts, members of an enumeration.
ASSUMED_VERSION
CONSOLE
away_seconds
by_operator
held_bytes
rpc_code
servers

# The drivers of measurements and the tests ask for these.
_.close_streams
_.transfer
_.has_error
_.is_object
_.is_scout
diagram

# A string annotation names it.
ResponseHandler

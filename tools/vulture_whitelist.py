"""Names that are used where vulture does not look: a library calls them, or a test asks for them.

A name that nobody needs is removed where it stands, not added here.
"""

# asyncio calls these on a protocol or transport.
_.connection_lost
_.eof_received
_.pause_writing
_.pipe_connection_lost
_.pipe_data_received
_.process_exited
_.resume_writing
fd

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
advice
away_seconds
by_operator
held_bytes
rpc_code
servers

# The drivers of measurements and the tests ask for these.
_.close_streams
_.transfer
_.crowd
_.has_error
_.is_object
_.is_scout
diagram

# A string annotation names it.
ResponseHandler

# Keys of the settings that are handed down by their names, all at once; test_loader.py sees to it that each arrives.
_.connect_timeout
_.idle_timeout
_.first_byte_hint
_.drain_timeout
_.comment_interval
_.hold_timeout
_.connect_hold_timeout
_.early_stream_after
_.idle_ttl
_.max_lifetime
_.client_timeout
_.drain_delay

_._observes_no_tokens
_._one_source

# asyncio calls them, weakref reads it.
_.get_buffer
_.buffer_updated
sizehint
_.atexit

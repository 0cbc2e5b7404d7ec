"""Real SDK servers, killed and restarted under real SDK clients, through the sidecar.

    python -m tools.interop_env python node          # what `make test` runs; `all` adds rust, go and conformance
    pytest tests/interop -m "not cargo and not go"
    INTEROP_DIRECT=1 pytest tests/interop            # the same without the sidecar; records, judges nothing
    python -m tests.interop.table                    # both, side by side
    python -m tests.interop.conformance              # the official suite, directly and through the sidecar

``catalogue`` says what there is, ``scenarios`` what is done to it, ``lab`` plays, the tests judge; ``test_whole_session`` needs
servers with subscriptions, a log level and questions, and tells its story in one piece. ``servers``, ``clients``,
``node``, ``rust`` and ``go`` run in environments of their own and import nothing from here.
"""

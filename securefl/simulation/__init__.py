"""Many clients in one process: the in-memory network, the session driver, ``secure_sum``.

The machines are the real ones; only the wire is simulated. Import what you need from the modules;
this package imports none of them, so that a secure sum loads no training code.
"""

"""Protocols as sans-IO machines: bytes and calls in, bytes and events out.

No floats, no differential privacy, no sockets, no clocks. Secure aggregation hides single inputs
behind their sum; it does not make the sum itself private.
"""

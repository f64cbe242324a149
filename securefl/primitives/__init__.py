"""Hazmat: the cryptographic parts that protocols are built from. Used by protocols, never
re-exported. The only place that imports ``cryptography``; knows no protocol and no phase.
"""

"""Secure aggregation with pairwise masks (Bonawitz et al., CCS 2017).

Read in this order: ``params`` (what must hold), ``transitions`` (the two machines as tables),
``messages`` (what travels), ``keys`` (what is derived from what), ``client``, ``server``,
``recovery``.
"""

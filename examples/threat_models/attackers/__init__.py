"""Servers that lie, clients that help them, and clients with one check taken out.

``stage`` drives real machines by forged frames and records all of it; ``lists``, ``rosters`` and
``inputs`` are the attacks, one function each; ``weakened`` has the clients without one defence.
An attack ends by reading its own transcript through :class:`kit.view.View`: it never looks into a
client that does not collude.
"""

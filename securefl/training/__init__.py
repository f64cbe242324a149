"""Steps 1 and 9 of a round: train a client's update, apply the decoded mean.

This package knows models, data and optimisers. It knows no codec, no protocol, no key and no
socket. Importing it loads no torch; its modules do:

- ``data``, ``leaf``, ``partition``: data sets and how they are dealt to clients (NumPy only),
- ``models``, ``local``: small models, plain local training, evaluation,
- ``scattering``: fixed features of images,
- ``clipped_sum``: sums of clipped per-record gradients,
- ``randomness``, ``dpsgd``: record-level differential privacy with coins from the operating
  system,
- ``apply``: server optimisers on the decoded mean.
"""

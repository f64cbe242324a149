"""Steps 1 and 9 of a round: train a client's update, apply the decoded mean.

This package knows models, data and optimisers. It knows no codec, no protocol, no key and no
socket. Importing it loads no torch; its modules do:

- ``data``, ``leaf``, ``partition``: data sets and how they are dealt to clients (NumPy only),
- ``models``, ``local``: small models, plain local training, evaluation,
- ``scattering``: fixed features of images,
- ``clipped_sum``: sums of clipped per-record gradients,
- ``randomness``, ``dpsgd``: record-level differential privacy with coins from the operating
  system,
- ``payload``, ``qfedavg``, ``fednova``, ``scaffold``: algorithms that send more than the update,
- ``weighting``, ``participation``, ``stopping``: how much a client counts, who is asked, when a run
  ends,
- ``statistics``, ``client_metrics``: what a federation may ask of its records at once,
- ``apply``, ``fedopt``: server optimisers on the decoded mean.
"""

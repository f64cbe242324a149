"""A secure sum from beginning to end: who drops when, what comes out, what it costs.

Run it with:  python examples/secure_sum.py
"""

from securefl.errors import BelowThreshold
from securefl.simulation.secure_sum import secure_sum

# Ten hospitals count cases of three diagnoses. Nobody may see another's counts.
counts = {hospital: [hospital, 10 * hospital, 7] for hospital in range(1, 11)}

# 1. Everybody stays: the sum over all ten.
everybody = secure_sum(counts)
print("everybody stays")
print("  sum:      ", everybody.sum.tolist())
print("  survivors:", everybody.survivors)
print("  bytes up: ", everybody.bytes_up[1], "per client,", everybody.total_bytes_up, "in all")

# 2. Some leave. Hospital 3 never sends its vector, so it is not in the sum. Hospital 8 sends it and
#    leaves before the masks are opened: it *is* in the sum.
some = secure_sum(counts, drop={"masked_input_collection": [3], "unmasking": [8]})
print("hospital 3 leaves before sending its vector, hospital 8 after")
print("  sum:      ", some.sum.tolist())
print("  survivors:", some.survivors)
assert some.sum.tolist() == [sum(counts[h][i] for h in some.survivors) for i in range(3)]

# 3. What did the server see of hospital 5? Keys, ciphertexts, a masked vector, shares; no counts.
print("what the server received from hospital 5")
for record in some.transcript:
    if record.sender == 5:
        print(f"  {record.phase:24} {len(record.frame):5} bytes  ...{record.frame[-12:].hex()}")

# 4. Too many leave: no sum at all, rather than a sum over too few.
try:
    secure_sum(counts, drop={"share_keys": [1, 2, 3, 4]})
except BelowThreshold as error:
    print(f"four hospitals leave early\n  {error}")

# The sum is exact and tells everybody the same. If that is already too much (say, because one
# hospital's counts could be guessed from it), add noise first: differential privacy does that,
# secure aggregation does not.

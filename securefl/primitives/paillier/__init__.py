"""Paillier's cryptosystem and its Damgard-Jurik generalisation. Hazmat: used by protocols only.

Paillier 1999; Damgard, Jurik 2001 (degrees s = 1, 2, 3); Damgard, Jurik, Nielsen 2010 (the short
form of encryption with a fixed base). Additively homomorphic and therefore malleable: whoever may
have *any* ciphertext opened reads every update. That is why nothing here decides what may be
opened; the protocol's key holder, witness and share holders do. Not post-quantum.
"""

from securefl.primitives.paillier.encryptor import Encryptor, RandomizerPool, Randomness
from securefl.primitives.paillier.keys import PublicKey, SecretKey, generate_keypair
from securefl.primitives.paillier.slots import BadPlaintext, SlotLayout

__all__ = [
    "BadPlaintext",
    "Encryptor",
    "PublicKey",
    "RandomizerPool",
    "Randomness",
    "SecretKey",
    "SlotLayout",
    "generate_keypair",
]

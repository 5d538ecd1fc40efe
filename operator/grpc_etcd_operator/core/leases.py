"""The id of the lease of a Pod or GrpcService: known to every replica without asking.

Granting twice is harmless ("lease already exists" is success), a restart adopts, a takeover needs no hand-over.
"""

import hashlib

# Stands in place of a UID for the lease of all flush keys of a cluster.
SETTLED = "settled"
_MASK = (1 << 63) - 1


def lease_id(cluster: str, uid: str) -> int:
    """Hash a cluster id and a UID to a positive 63-bit lease id (etcd's ids are int64, 0 means none)."""
    digest = hashlib.blake2b(f"{cluster}\0{uid}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) & _MASK or 1

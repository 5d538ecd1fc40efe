"""The process keys: which processes register one key, so that the last of them takes it away and no earlier one. Pure.

Several processes can serve at one address (SO_REUSEPORT workers), and only one lease can hold the key. So each of them
keeps a process key beside it, under its own lease, with the value that it wants there. Who leaves while there are other
process keys does not delete the key but puts it under another's lease, in the transaction that deletes its own process
key: readers see no gap.
"""

from grpc_etcd.registry.own import ROOT

_ROOT = ROOT + b"registered-by"


def process_prefix(key: bytes) -> bytes:
    """Return the prefix of all process keys of `key`."""
    return _ROOT + (key if key.startswith(b"/") else b":" + key) + b"/"


def process_key(key: bytes, lease: int) -> bytes:
    """Return the process key of who registers `key` under `lease`; the lease is there as etcdctl shows it."""
    return process_prefix(key) + b"%016x" % lease


def registered_key(key: bytes) -> bytes | None:
    """Return the key that a process key is about; None for what is not a process key."""
    if not key.startswith(_ROOT):
        return None
    registered, separator, _ = key[len(_ROOT) :].rpartition(b"/")
    return registered.removeprefix(b":") if separator else None


def about(key: bytes) -> bytes:
    """Return the key that is registered: of a process key or of their prefix the one beside it, else the key itself."""
    registered = registered_key(key)
    return key if registered is None else registered

"""When the certificates in TLS files run out: read with the standard library, for the metrics only."""

import ssl
from collections.abc import Iterator
from pathlib import Path


def expiries(*files: Path | None) -> Iterator[tuple[str, float]]:
    """Give each file's name and when (Unix time) its first certificate runs out; unreadable files are left out."""
    for file in files:
        if file is None:
            continue
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(file)
        except (OSError, ssl.SSLError):
            continue
        for certificate in context.get_ca_certs():
            not_after = certificate.get("notAfter")
            if isinstance(not_after, str):
                yield str(file), float(ssl.cert_time_to_seconds(not_after))
                break

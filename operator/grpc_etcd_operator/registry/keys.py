"""Keys by the folders that their slashes make, so that those under a prefix are found without looking at all. Pure.

A registry lists each service's prefix by itself: were each listing compared with every key there is, a start with 1,000
GrpcServices and 100,000 keys would look at 100 million. A folder ends with a slash, or is empty: the root. The keys
under a prefix are those of its folder that begin with it, and all below the folders there that do.
"""


class KeyTree:
    """A set of keys. Adding and dropping one costs as much as it has slashes, at most."""

    def __init__(self) -> None:
        self._keys: dict[bytes, set[bytes]] = {}
        self._folders: dict[bytes, set[bytes]] = {}  # by the folder that they are in

    def add(self, key: bytes) -> None:
        """Add a key, if it is not there yet."""
        folder = _folder_of(key)
        keys = self._keys.get(folder)
        if keys is None:
            self._keys[folder] = {key}
            self._add_folder(folder)
        else:
            keys.add(key)

    def discard(self, key: bytes) -> None:
        """Drop a key, if it is there."""
        folder = _folder_of(key)
        keys = self._keys.get(folder)
        if keys is None:
            return
        keys.discard(key)
        if not keys:
            del self._keys[folder]
            self._drop_empty(folder)

    def under(self, prefix: bytes) -> list[bytes]:
        """List the keys that begin with a prefix, in no order."""
        folder = _folder_of(prefix)
        found = [key for key in self._keys.get(folder, ()) if key.startswith(prefix)]
        folders = [each for each in self._folders.get(folder, ()) if each.startswith(prefix)]
        while folders:
            each = folders.pop()
            found += self._keys.get(each, ())
            folders += self._folders.get(each, ())
        return found

    def _add_folder(self, folder: bytes) -> None:
        while folder:
            above = _above(folder)
            beside = self._folders.setdefault(above, set())
            if folder in beside:
                return
            beside.add(folder)
            folder = above

    def _drop_empty(self, folder: bytes) -> None:
        while folder and folder not in self._keys and folder not in self._folders:
            above = _above(folder)
            self._folders[above].discard(folder)
            if not self._folders[above]:
                del self._folders[above]
            folder = above


def _folder_of(key: bytes) -> bytes:
    return key[: key.rfind(b"/") + 1]


def _above(folder: bytes) -> bytes:
    return folder[: folder.rfind(b"/", 0, len(folder) - 1) + 1]

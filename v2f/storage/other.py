"""The other stores that fsspec supports, such as gs:// and https://, as a back end."""

import errno
import functools
from collections.abc import Iterable
from typing import Any

from v2f.storage import s3
from v2f.storage.backend import Backend


class OtherStore(Backend):
    """Any other store that fsspec supports. Without ETags, :meth:`create` has to look before it writes."""

    @functools.cached_property
    def _filesystem(self) -> Any:
        import fsspec  # here, because local paths and s3:// do not need it

        filesystem = fsspec.core.url_to_fs(self.path)[0]
        filesystem.invalidate_cache(self.path)  # fsspec caches listings, and other processes write, too
        return filesystem

    def exists(self) -> bool:
        def act() -> bool:
            try:
                self._filesystem.info(self.path)  # not exists(): that takes any error for an absent file
            except FileNotFoundError:
                return False
            return True

        return self.request(act)

    def size(self) -> int:
        return self.request(lambda: int(self._filesystem.size(self.path)))

    def names(self) -> list[str]:
        return self._below(self.request(lambda: self._filesystem.ls(self.path, detail=False)))

    def tree(self) -> list[str]:
        return self._below(self.request(lambda: self._filesystem.find(self.path)))

    def _below(self, paths: Iterable[str]) -> list[str]:
        """``paths`` relative to this one; fsspec lists a file, or the marker of an empty folder, as itself."""
        root = str(self._filesystem._strip_protocol(self.path)).rstrip("/") + "/"
        below = (str(path).rstrip("/") for path in paths)
        return [path.removeprefix(root) for path in below if path.startswith(root)]

    def read(self, start: int, stop: int | None) -> bytes:
        if stop is None:
            return self.request(lambda: bytes(self._filesystem.cat_file(self.path, start=start or None)))

        def act() -> bytes:
            try:
                data = bytes(self._filesystem.cat_file(self.path, start=start, end=stop))
            except OSError as error:
                if error.errno != errno.EINVAL:  # what some stores raise for a range that starts beyond the end
                    raise
                data = b""
            if len(data) < stop - start and self._filesystem.size(self.path) >= stop:
                raise s3.TransientError("the answer was cut")
            return data

        return self.request(act)

    def read_tagged(self) -> tuple[bytes | None, str | None]:
        try:
            return self.read(0, None), None
        except FileNotFoundError:
            return None, None

    def put(self, temporary: str) -> None:
        self.request(lambda: self._filesystem.put_file(temporary, self.path))

    def create(self, data: bytes) -> bool:
        if self.exists():
            return False
        self.request(lambda: self._filesystem.pipe_file(self.path, data))
        return True

    def renew(self, data: bytes, tag: str | None) -> str | None:
        self.request(lambda: self._filesystem.pipe_file(self.path, data))
        return None

    def remove(self) -> None:
        self.request(lambda: self._filesystem.rm_file(self.path))

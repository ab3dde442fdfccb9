"""Whatever else fsspec knows, such as gs:// and https://, as a back end."""

import errno
import functools
from typing import Any

from v2f.storage import s3
from v2f.storage.backend import Backend


class OtherStore(Backend):
    """Any other store that fsspec knows. It has no ETags, so that :meth:`create` looks before it writes."""

    @functools.cached_property
    def _filesystem(self) -> Any:
        import fsspec  # here: neither a local path nor s3:// waits for its imports

        return fsspec.core.url_to_fs(self.path)[0]

    def exists(self) -> bool:
        return self.request(lambda: bool(self._filesystem.exists(self.path)))

    def size(self) -> int:
        return self.request(lambda: int(self._filesystem.size(self.path)))

    def names(self) -> list[str]:
        def act() -> list[str]:
            self._filesystem.invalidate_cache(self.path)
            return [str(name) for name in self._filesystem.ls(self.path, detail=False)]

        return [name.rstrip("/").rsplit("/", 1)[-1] for name in self.request(act)]

    def tree(self) -> list[str]:
        root = str(self._filesystem._strip_protocol(self.path)).rstrip("/") + "/"

        def act() -> list[str]:
            self._filesystem.invalidate_cache(self.path)
            return [str(name) for name in self._filesystem.find(self.path)]

        return [name.removeprefix(root) for name in self.request(act)]

    def read(self, start: int, stop: int | None) -> bytes:
        if stop is None:
            return self.request(lambda: bytes(self._filesystem.cat_file(self.path, start=start or None)))

        def act() -> bytes:
            try:
                data = bytes(self._filesystem.cat_file(self.path, start=start, end=stop))
            except OSError as error:
                if error.errno != errno.EINVAL:  # the answer of some to a range that starts beyond the end
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

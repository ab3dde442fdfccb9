"""Objects of an S3 store as a back end."""

import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor

from v2f.storage import s3
from v2f.storage.backend import Backend, ConflictError
from v2f.storage.credentials import redacted
from v2f.storage.retry import Attempts

PART = 32 << 20  # a larger file is uploaded in parts of at least this size; S3 takes 10,000 parts
_UPLOADS = 4  # parts of one file at a time
PROGRESS = 1 << 20  # an interrupted answer of at least this many bytes resets the count of failures


class Objects(Backend):
    """Objects of an S3 store. An interrupted read resumes at the next byte; a large file is uploaded in parts."""

    def exists(self) -> bool:
        try:
            self.size()
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                return bool(self.request(lambda: s3.page(self.path, None, limit=1))[0])
            return False
        return True

    def size(self) -> int:
        return self.request(lambda: s3.size(self.path))

    def names(self) -> list[str]:
        return self._listed(deep=False)

    def tree(self) -> list[str]:
        return self._listed(deep=True)

    def _listed(self, deep: bool) -> list[str]:
        found: list[str] = []
        token: str | None = None
        while True:
            some, token = self.request(functools.partial(s3.page, self.path, token, deep=deep))
            found += some
            if token is None:
                return found

    def read(self, start: int, stop: int | None) -> bytes:
        attempts = Attempts(self.path, self.verb)
        chunks: list[bytes] = []
        here, etag = start, None
        while stop is None or here < stop:
            before = here
            try:
                attempts.begin()
                answer = s3.get(self.path, here, stop, etag)
                etag = answer.etag  # from now on only this version: otherwise the result could mix two versions
                stop = answer.total if stop is None else min(stop, answer.total)
                chunks.append(answer.content[: stop - here])
                here += len(chunks[-1])
                if here < stop:
                    raise answer.failure or s3.TransientError("the answer was cut")
            except s3.BeyondEndError:
                # The range of an empty object is beyond its end, too; only the size tells.
                if stop is None and self.size() != 0:
                    attempts.failed(s3.TransientError("the answer was cut"))
                    continue
                break
            except s3.TransientError as error:
                attempts.failed(error, progress=here - before >= PROGRESS)
        return b"".join(chunks)

    def read_tagged(self) -> tuple[bytes | None, str | None]:
        try:
            return self.request(lambda: s3.read(self.path))
        except FileNotFoundError:
            return None, None

    def put(self, temporary: str) -> None:
        if os.path.getsize(temporary) > PART:
            self._put_in_parts(temporary)
            return
        with open(temporary, "rb") as file:
            content = file.read()
        self.request(lambda: s3.put(self.path, content))

    def _put_in_parts(self, temporary: str) -> None:
        length = os.path.getsize(temporary)
        part = max(PART, -(-length // 9000))
        upload = self.request(lambda: s3.start_upload(self.path))

        def put(number: int) -> str:
            with open(temporary, "rb") as file:
                file.seek((number - 1) * part)
                content = file.read(part)
            return self.request(lambda: s3.put_part(self.path, upload, number, content))

        def finish() -> None:
            try:
                s3.finish_upload(self.path, upload, etags)
            except FileNotFoundError:
                # If an earlier attempt succeeded and its answer was lost, the object exists and the upload does not.
                if s3.size(self.path) != length:
                    raise

        try:
            with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="v2f-write") as pool:
                etags = list(pool.map(put, range(1, -(-length // part) + 1)))
            self.request(finish)
        except BaseException:
            with contextlib.suppress(Exception):  # unfinished parts cost money; report the first error
                s3.abort_upload(self.path, upload)
            raise

    def create(self, data: bytes) -> bool:
        return self.request(lambda: s3.create(self.path, data))

    def renew(self, data: bytes, tag: str | None) -> str | None:
        try:
            return self.request(lambda: s3.put(self.path, data, match=tag))
        except (s3.ExistsError, FileNotFoundError):
            raise ConflictError(f"{redacted(self.path)}: another process has written or removed it") from None

    def remove(self) -> None:
        self.request(lambda: s3.delete(self.path))

    def lacks_bucket(self) -> bool:
        # The answer to a HEAD request, and on some stores to a GET, does not distinguish a missing object from a
        # missing bucket.
        try:
            s3.page(self.path, None, limit=1)
        except s3.NoBucketError:
            return True
        except Exception:  # report the original error
            return False
        return False

"""Single requests to an S3 store, through s3fs; :mod:`v2f.storage.objects` retries and resumes them.

    s3://bucket/key -> s3fs (signs, finds endpoint, profile and keys) -> answer, or one of these errors:
    FileNotFoundError; TransientError: retry; S3Error: do not retry. Their texts contain no secrets.
    (NoBucketError: the store says that the whole bucket is missing, not only the object)

The retries of s3fs and botocore are off, because they cannot resume an interrupted body. Endpoint, profile, keys,
roles and certificates come from the usual environment variables and files of boto3: AWS_ENDPOINT_URL, AWS_PROFILE,
AWS_ACCESS_KEY_ID and so on. A custom endpoint is addressed by path, not by the bucket's host name.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

CONNECT_S = 10.0  # to connect
READ_S = 30.0  # without a byte
_PIECE = 1 << 20  # bytes of a body that are read at once
_CONNECTIONS = 64  # kept open for the reading threads of a rank

_PATH = re.compile(r"^s3a?://([^/]+)/*(.*)$", re.IGNORECASE)
_CODE = re.compile(r"[A-Za-z0-9]{1,40}")
_MISSING = ("NoSuchKey", "NoSuchUpload", "NotFound", "404")
NO_BUCKET = "there is no such bucket; create it, or correct its name or AWS_ENDPOINT_URL"
_AGAIN = (408, 409, 429)  # and all of 5xx: request timeout, conflict of writers, too many requests
_AGAIN_CODES = (
    *("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException"),
    *("RequestLimitExceeded", "OperationAborted"),
    *("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),  # damaged on its way
)

_SOURCES = {  # botocore's names for the source of credentials, in words
    "env": "of the environment",
    "shared-credentials-file": "of the credentials file",
    "config-file": "of the configuration file",
    "iam-role": "of the machine's role",
    "container-role": "of the container's role",
    "assume-role": "of an assumed role",
    "assume-role-with-web-identity": "of the pod's role",
    "sso": "of single sign-on",
    "custom-process": "of a program that the configuration names",
}


class S3Error(OSError):
    """A request cannot succeed; the text says why."""


class DeniedError(S3Error, PermissionError):
    """The credentials do not permit this request."""


class NoBucketError(S3Error):
    """The bucket does not exist."""


class TransientError(S3Error):
    """A request failed, but may succeed if it is retried; the text says why."""


class ExistsError(S3Error):
    """The condition of a write does not hold: the object exists, or has another ETag."""


class UnknownConditionError(S3Error):
    """The store does not support this kind of request, for example a conditional write."""


class BeyondEndError(S3Error):
    """The range starts beyond the object's end."""


@dataclass(frozen=True)
class Answer:
    """The answer to a ranged read of an object of ``total`` bytes: what has arrived, and the error that interrupted it.
    An answer can also end too early without an error."""

    total: int
    etag: str | None
    content: bytes
    failure: Exception | None = None


@dataclass(frozen=True)
class Access:
    """The endpoint in use, and the source of the credentials in words (``none`` if there are none)."""

    endpoint: str
    credentials: str


def access() -> Access:
    """How this process would reach S3. Contains no credentials, and does not try them."""
    with _translated():
        import botocore.session

        found = botocore.session.Session().get_credentials()
        filesystem = _filesystem()
        return Access(filesystem.s3.meta.endpoint_url, _SOURCES.get(found.method, found.method) if found else "none")


def get(path: str, offset: int, stop: int | None, etag: str | None) -> Answer:
    """Bytes [offset, stop), or to the end if ``stop`` is None, of the version with ``etag`` if one is given."""
    bucket, key = _bucket_key(path)
    condition = {"IfMatch": etag} if etag else {}
    # A range even for the whole object: only Content-Range distinguishes a short answer from a short object.
    wanted = f"bytes={offset}-{'' if stop is None else stop - 1}"
    answer, content, failure = _content(Bucket=bucket, Key=key, Range=wanted, **condition)
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.get("ContentRange", ""))
    if place is None or int(place[1]) != offset:
        raise S3Error("this store does not support ranged reads")
    return Answer(int(place[2]), answer.get("ETag"), content, failure)


def size(path: str) -> int:
    bucket, key = _bucket_key(path)
    if not key:
        raise FileNotFoundError(path)
    return int(_request("head_object", Bucket=bucket, Key=key)["ContentLength"])


def page(path: str, token: str | None, limit: int = 1000, deep: bool = False) -> tuple[list[str], str | None]:
    """Some of the names directly below a prefix (``deep``: at any depth), and the token of the next page or None."""
    bucket, key = _bucket_key(path)
    prefix = key.rstrip("/") + "/" if key else ""
    after = {"ContinuationToken": token} if token else {}
    grouped = {} if deep else {"Delimiter": "/"}
    answer = _request("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=limit, **grouped, **after)
    found = [item["Key"] for item in answer.get("Contents", [])]
    found += [item["Prefix"] for item in answer.get("CommonPrefixes", [])]
    names = [name[len(prefix) :].rstrip("/") for name in found]
    return [name for name in names if name], answer.get("NextContinuationToken") if answer.get("IsTruncated") else None


def put(path: str, body: bytes, *, match: str | None = None) -> str | None:
    """Write an object and return its ETag. With ``match``, only replace the version with this ETag, if the store can
    compare."""
    return _put(path, body, {"IfMatch": match} if match else {})


def create(path: str, body: bytes) -> bool:
    """Write an object if it does not exist; False if it does. Some stores check this without a lock."""
    try:
        _put(path, body, {"IfNoneMatch": "*"})
    except ExistsError:
        return False
    return True


def _put(path: str, body: bytes, condition: dict[str, str]) -> str | None:
    bucket, key = _bucket_and_key(path)
    try:
        etag: str | None = _request("put_object", Bucket=bucket, Key=key, Body=body, **condition).get("ETag")
        return etag
    except UnknownConditionError:
        if not condition:  # it is something else that the store lacks
            raise
        if "IfNoneMatch" in condition and _exists(path):
            raise ExistsError("it exists already") from None
        return _put(path, body, {})


def _exists(path: str) -> bool:
    try:
        size(path)
    except FileNotFoundError:
        return False
    return True


def read(path: str) -> tuple[bytes, str | None]:
    """The whole of a small object, and its ETag."""
    bucket, key = _bucket_and_key(path)
    answer, content, failure = _content(Bucket=bucket, Key=key)
    if failure is not None:
        raise failure
    return content, answer.get("ETag")


def delete(path: str) -> None:
    bucket, key = _bucket_and_key(path)
    _request("delete_object", Bucket=bucket, Key=key)


def start_upload(path: str) -> str:
    """Start an upload in parts; returns its id."""
    bucket, key = _bucket_and_key(path)
    return str(_request("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"])


def put_part(path: str, upload: str, number: int, body: bytes) -> str:
    """Upload part ``number``, counted from 1; returns its ETag."""
    bucket, key = _bucket_and_key(path)
    answer = _request("upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)
    return str(answer["ETag"])


def finish_upload(path: str, upload: str, etags: Sequence[str]) -> None:
    bucket, key = _bucket_and_key(path)
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]
    whole = {"Parts": parts}
    _request("complete_multipart_upload", Bucket=bucket, Key=key, UploadId=upload, MultipartUpload=whole)


def abort_upload(path: str, upload: str) -> None:
    bucket, key = _bucket_and_key(path)
    _request("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)


def _bucket_key(path: str) -> tuple[str, str]:
    found = _PATH.match(path)
    if found is None:
        raise ValueError(path)
    return found[1], found[2]


def _bucket_and_key(path: str) -> tuple[str, str]:
    bucket, key = _bucket_key(path)
    if not key:
        raise S3Error("it names a bucket, not an object; add a key")
    return bucket, key


_making = threading.Lock()
_made: tuple[tuple[Any, ...], Any] | None = None
_of_parents: list[Any] = []  # kept, because closing a parent's client here would fail


def _after_fork() -> None:
    """Give a forked process a client and a lock of its own."""
    global _making, _made
    _making = threading.Lock()
    if _made is not None:
        _of_parents.append(_made)
        _made = None


os.register_at_fork(after_in_child=_after_fork)


def _filesystem() -> Any:
    """The s3fs of this process, which is thread-safe; a new one after a fork, or if the settings have changed."""
    global _made
    environment = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    settings = (CONNECT_S, READ_S, *environment)
    with _making:
        if _made is None or _made[0] != settings:
            import s3fs  # here, because most runs read local files, and decode workers must start fast

            filesystem = s3fs.S3FileSystem(
                skip_instance_cache=True,
                config_kwargs={
                    "connect_timeout": CONNECT_S,
                    "read_timeout": READ_S,
                    "retries": {"total_max_attempts": 1, "mode": "standard"},
                    "max_pool_connections": _CONNECTIONS,
                    "tcp_keepalive": True,
                },
            )
            filesystem.retries = 1
            filesystem.connect()  # under the lock: threads that connect at once would each open a client, and leak it
            _made = settings, filesystem
        return _made[1]


def _request(method: str, **arguments: Any) -> dict[str, Any]:
    """The answer to one request, such as ``head_object``; raises one of the errors above."""
    with _translated():
        answer: dict[str, Any] = _filesystem().call_s3(method, **arguments)
        return answer


def _content(**arguments: Any) -> tuple[dict[str, Any], bytes, Exception | None]:
    """The answer to ``get_object``, the part of its body that arrived, and the error that interrupted it.

    The body is read in the thread of s3fs without a pause, because aiohttp drops its buffer when a connection breaks.
    """
    from fsspec.asyn import sync

    pieces: list[bytes] = []
    failures: list[Exception] = []

    async def read(filesystem: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await filesystem._call_s3("get_object", **arguments)
        body = answer["Body"]
        try:
            while piece := await body.read(_PIECE):
                pieces.append(piece)
        except Exception as error:
            failures.append(_translation(error))
        finally:
            body.close()  # a connection that was read to the end is reused, any other is closed
        return answer

    with _translated():
        filesystem = _filesystem()
        return sync(filesystem.loop, read, filesystem), b"".join(pieces), failures[0] if failures else None


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except S3Error:
        raise
    except Exception as error:
        raise _translation(error) from None


def _translation(error: Exception) -> Exception:
    """An error of s3fs, botocore or aiohttp as one of the errors above, without its text: that may hold secrets."""
    import aiohttp
    import botocore.exceptions as known
    from botocore.parsers import ResponseParserError

    if isinstance(error.__cause__, (known.ClientError, known.BotoCoreError)):
        error = error.__cause__  # which s3fs and fsspec wrap in less specific exceptions

    match error:
        case known.ClientError():
            return _answered(error.response)
        case known.NoCredentialsError() | known.PartialCredentialsError():
            return DeniedError("no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
        case known.ProfileNotFound():
            return S3Error("AWS_PROFILE names a profile that is in none of the AWS configuration files")
        case known.ParamValidationError():
            return S3Error("S3 allows no such bucket or key")
        case known.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return S3Error("the endpoint's certificate is not trusted; set AWS_CA_BUNDLE to the file of its CA")
        case known.SSLError() | known.HTTPClientError() if re.search(r"\[X509|\[PEM|\[Errno 2\]", str(error)):
            return S3Error("the file named by AWS_CA_BUNDLE is missing or holds no certificate")
        case known.SSLError() if "WRONG_VERSION_NUMBER" in str(error):
            return S3Error("the endpoint does not use TLS; should AWS_ENDPOINT_URL begin with http://?")
        case known.EndpointConnectionError() | known.ConnectTimeoutError() | known.ProxyConnectionError():
            return TransientError("no connection to the endpoint")
        case known.ReadTimeoutError():
            return TransientError(f"no byte for {READ_S:g} s")
        case known.HTTPClientError() | known.ConnectionError() | known.IncompleteReadError() | ResponseParserError():
            return TransientError("the connection was interrupted")
        case aiohttp.ClientError():  # while a body arrives
            return TransientError("the connection was interrupted")
        case known.ChecksumError() | known.FlexibleChecksumError():
            return TransientError("the answer was damaged in transit")
        case known.CredentialRetrievalError() | known.TokenRetrievalError():
            return TransientError("the credentials could not be fetched")
        case known.BotoCoreError():
            return S3Error(type(error).__name__)
        case ValueError() if "endpoint" in str(error):
            return S3Error("the endpoint is not a URL; see AWS_ENDPOINT_URL")
    return error


def _answered(response: Any) -> Exception:
    code, status = str(response["Error"].get("Code", "")), response["ResponseMetadata"].get("HTTPStatusCode", 0)
    if code == "NotImplemented":
        return UnknownConditionError("the store does not support this request")
    text = f"HTTP {status} {code}" if _CODE.fullmatch(code) and code != str(status) else f"HTTP {status}"
    if code in _AGAIN_CODES or status in _AGAIN or status >= 500:
        return TransientError(text)
    if status == 416:
        return BeyondEndError(text)
    if status == 412:
        return ExistsError("it was replaced while it was being read; try again")
    if code == "NoSuchBucket":
        return NoBucketError(NO_BUCKET)
    if status == 404 or code in _MISSING:
        return FileNotFoundError(text)
    if status in (401, 403):
        return DeniedError(text)
    return S3Error(text)

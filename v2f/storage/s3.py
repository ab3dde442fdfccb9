"""Objects of an S3 store, one request at a time through s3fs; :mod:`v2f.storage.objects` retries and resumes them.

    s3://bucket/key -> s3fs (signs, finds endpoint, profile and keys) -> answer, or one of these errors:
    FileNotFoundError; TransientError: worth another attempt; S3Error: not, with a reason that names no secret
    (NoBucketError: where the store says that it is not the object but the whole bucket that is missing)

The retries of s3fs and of botocore beneath it are off, because they know nothing of a body that breaks off in its
middle. Endpoint, profile, keys, roles and certificates come from the environment and the files that boto3 users know:
AWS_ENDPOINT_URL, AWS_PROFILE, AWS_ACCESS_KEY_ID and so on. An endpoint of one's own is asked by path, not by a bucket's
host name.
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
_PIECE = 1 << 20  # the most bytes of a body that are taken at once
_CONNECTIONS = 64  # kept open for the reading threads of a rank

_PATH = re.compile(r"^s3a?://([^/]+)/*(.*)$", re.IGNORECASE)
_CODE = re.compile(r"[A-Za-z0-9]{1,40}")
_MISSING = ("NoSuchKey", "NoSuchUpload", "NotFound", "404")
NO_BUCKET = "there is no such bucket; make it, or mend its name or AWS_ENDPOINT_URL"
_AGAIN = (408, 409, 429)  # beside all of 5xx: a request that took too long, a conflict of writers, too many requests
_AGAIN_CODES = (
    *("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException"),
    *("RequestLimitExceeded", "OperationAborted"),
    *("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),  # damaged on its way
)

_SOURCES = {  # of botocore's names for where credentials come from, those that say little
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
    """Why a request cannot succeed; the text is fit for a message."""


class DeniedError(S3Error, PermissionError):
    """These credentials may not do this."""


class NoBucketError(S3Error):
    """The bucket does not exist."""


class TransientError(S3Error):
    """Why a request failed that may succeed when it is made again."""


class ExistsError(S3Error):
    """The condition of a write does not hold: something, or something else, is there."""


class UnknownConditionError(S3Error):
    """The store does not know this condition of a write."""


class BeyondEndError(S3Error):
    """The range starts beyond the object's end."""


@dataclass(frozen=True)
class Answer:
    """A ranged answer: what has arrived of an object of ``total`` bytes, and why no more, where it broke off. A cut
    answer may also simply end too early."""

    total: int
    etag: str | None
    content: bytes
    failure: Exception | None = None


@dataclass(frozen=True)
class Access:
    """Which store is asked, and in words where its credentials come from (``none`` where there are none)."""

    endpoint: str
    credentials: str


def access() -> Access:
    """How this process would reach S3; no credential is in the answer, and none is tried."""
    with _translated():
        import botocore.session

        found = botocore.session.Session().get_credentials()
        filesystem = _filesystem()
        return Access(filesystem.s3.meta.endpoint_url, _SOURCES.get(found.method, found.method) if found else "none")


def get(path: str, offset: int, stop: int | None, etag: str | None) -> Answer:
    """Bytes [offset, stop) (None: to the end) of an object, which must still be the one with ``etag``."""
    bucket, key = _bucket_key(path)
    condition = {"IfMatch": etag} if etag else {}
    # A range even for the whole: only Content-Range tells a short answer from a short object.
    wanted = f"bytes={offset}-{'' if stop is None else stop - 1}"
    answer, content, failure = _content(Bucket=bucket, Key=key, Range=wanted, **condition)
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.get("ContentRange", ""))
    if place is None or int(place[1]) != offset:
        raise S3Error("this store does not answer with the range that was asked for")
    return Answer(int(place[2]), answer.get("ETag"), content, failure)


def size(path: str) -> int:
    bucket, key = _bucket_key(path)
    if not key:
        raise FileNotFoundError(path)
    return int(_request("head_object", Bucket=bucket, Key=key)["ContentLength"])


def page(path: str, token: str | None, limit: int = 1000, deep: bool = False) -> tuple[list[str], str | None]:
    """Some names right below a prefix, ``deep``: all below it; and what asks for the following ones, None when there
    are none."""
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
    """Write an object, only in place of the one with the ETag ``match`` where the store can compare; its ETag."""
    return _put(path, body, {"IfMatch": match} if match else {})


def create(path: str, body: bytes) -> bool:
    """Write an object where none is; False where one is, as far as the store looks."""
    try:
        _put(path, body, {"IfNoneMatch": "*"})
    except ExistsError:
        return False
    return True


def _put(path: str, body: bytes, condition: dict[str, str]) -> str | None:
    bucket, key = _named(path)
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
    bucket, key = _named(path)
    answer, content, failure = _content(Bucket=bucket, Key=key)
    if failure is not None:
        raise failure
    return content, answer.get("ETag")


def delete(path: str) -> None:
    bucket, key = _named(path)
    _request("delete_object", Bucket=bucket, Key=key)


def start_upload(path: str) -> str:
    """The number of a new upload in parts."""
    bucket, key = _named(path)
    return str(_request("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"])


def put_part(path: str, upload: str, number: int, body: bytes) -> str:
    """Upload part ``number`` (from 1 on); its ETag."""
    bucket, key = _named(path)
    answer = _request("upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)
    return str(answer["ETag"])


def finish_upload(path: str, upload: str, etags: Sequence[str]) -> None:
    bucket, key = _named(path)
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]
    whole = {"Parts": parts}
    _request("complete_multipart_upload", Bucket=bucket, Key=key, UploadId=upload, MultipartUpload=whole)


def abort_upload(path: str, upload: str) -> None:
    bucket, key = _named(path)
    _request("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)


def _bucket_key(path: str) -> tuple[str, str]:
    found = _PATH.match(path)
    if found is None:
        raise ValueError(path)
    return found[1], found[2]


def _named(path: str) -> tuple[str, str]:
    bucket, key = _bucket_key(path)
    if not key:
        raise S3Error("it names a bucket, not an object in it")
    return bucket, key


_making = threading.Lock()
_made: tuple[tuple[Any, ...], Any] | None = None


def _filesystem() -> Any:
    """This process's s3fs (it is safe with threads); a new one after a fork, or where the settings have changed."""
    global _made
    environment = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    settings = (os.getpid(), CONNECT_S, READ_S, *environment)
    with _making:
        if _made is None or _made[0] != settings:
            import s3fs  # here, not above: most runs read local files, and decode workers start fast

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
            filesystem.connect()  # under the lock: threads that connect at once would each open a client, and lose it
            _made = settings, filesystem
        return _made[1]


def _request(method: str, **arguments: Any) -> dict[str, Any]:
    """The answer to one request, such as ``head_object``, or one of the errors above."""
    with _translated():
        answer: dict[str, Any] = _filesystem().call_s3(method, **arguments)
        return answer


def _content(**arguments: Any) -> tuple[dict[str, Any], bytes, Exception | None]:
    """The answer to a ``get_object``, what arrives of its body, and what ended that before its end.

    All in the thread of s3fs, without a pause: what waits in a buffer when the connection breaks off is lost.
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
            body.close()  # read to its end, its connection serves again; else it is dropped
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
    """What s3fs, botocore or aiohttp raised, as one of the errors above; their texts, which may hold anything, stay
    out of it."""
    import aiohttp
    import botocore.exceptions as known
    from botocore.parsers import ResponseParserError

    if isinstance(error.__cause__, (known.ClientError, known.BotoCoreError)):
        error = error.__cause__  # of which s3fs makes an OSError and fsspec a timeout of its own, which say less

    match error:
        case known.ClientError():
            return _answered(error.response)
        case known.NoCredentialsError() | known.PartialCredentialsError():
            return DeniedError(
                "no credentials are known; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        case known.ProfileNotFound():
            return S3Error("the profile that AWS_PROFILE names is in none of the AWS configuration files")
        case known.ParamValidationError():
            return S3Error("S3 allows no such bucket or key")
        case known.SSLError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return S3Error("the endpoint's certificate is not trusted; name the file of its CA in AWS_CA_BUNDLE")
        case known.SSLError() | known.HTTPClientError() if re.search(r"\[X509|\[PEM|\[Errno 2\]", str(error)):
            return S3Error("the file that AWS_CA_BUNDLE names is not there or holds no certificate")
        case known.SSLError() if "WRONG_VERSION_NUMBER" in str(error):
            return S3Error("the endpoint does not speak TLS; is AWS_ENDPOINT_URL to begin with http://?")
        case known.EndpointConnectionError() | known.ConnectTimeoutError() | known.ProxyConnectionError():
            return TransientError("no connection to the endpoint")
        case known.ReadTimeoutError():
            return TransientError(f"no byte for {READ_S:g} s")
        case known.HTTPClientError() | known.ConnectionError() | known.IncompleteReadError() | ResponseParserError():
            return TransientError("the connection broke off")
        case aiohttp.ClientError():  # while a body arrives
            return TransientError("the connection broke off")
        case known.ChecksumError() | known.FlexibleChecksumError():
            return TransientError("the answer was damaged on its way")
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
    shown = f"HTTP {status} {code}" if _CODE.fullmatch(code) and code != str(status) else f"HTTP {status}"
    if code in _AGAIN_CODES or status in _AGAIN or status >= 500:
        return TransientError(shown)
    if status == 416:
        return BeyondEndError(shown)
    if status == 412:
        return ExistsError("it was replaced while it was read")
    if code == "NoSuchBucket":
        return NoBucketError(NO_BUCKET)
    if status == 404 or code in _MISSING:
        return FileNotFoundError(shown)
    if status in (401, 403):
        return DeniedError(shown)
    return S3Error(shown)

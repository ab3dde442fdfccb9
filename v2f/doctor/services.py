"""Services: a round trip to the store and one to MLflow, and whether their clocks agree with this machine's."""

import contextlib
import email.utils
import os
import random
import time
import urllib.error
import urllib.request
import uuid
import zlib
from collections.abc import Generator, Iterator

from v2f.config import build
from v2f.doctor.findings import MIB, Finding, Setup, Step, Verdict, existing, finding_of
from v2f.errors import V2FError
from v2f.storage import objects, retry, s3, store
from v2f.storage.credentials import without_credentials

ATTEMPTS = 3  # report the reason soon; a run tries ten times
_PUT, _PART = (
    6 * MIB,
    5 * MIB,
)  # two parts, as a checkpoint is uploaded; S3 requires at least 5 MiB for all but the last
_CLOCK: dict[Verdict, float] = {
    "look": 30.0,
    "wrong": 900.0,
}  # seconds; S3 rejects signatures that are off by more than 15 minutes


def storage(setup: Setup) -> Iterator[Step]:
    """A round trip as for a checkpoint: upload in parts, read a range and the whole, compare, list, remove."""
    if setup.store is None:
        yield Finding(
            "storage", "ok", "not checked: none was named", "--store s3://... (or a folder) makes a round trip to it"
        )
        return
    root, shown = setup.store, without_credentials(setup.store)
    retry.ATTEMPTS = ATTEMPTS
    objects.PART = _PART
    local = store.local_path(root)
    if local is not None and not os.path.isdir(local):
        yield Finding("storage", "wrong", f"{shown}: this folder does not exist", "create or mount it")
        return
    access: str | None = ""
    if root.lower().startswith(("s3://", "s3a://")):
        access = yield from _s3_access(shown)
        if access is None:
            return
    body = random.Random(uuid.uuid4().int).randbytes(_PUT if local is None else MIB)
    folder = store.join(root, f"v2f-doctor-{uuid.uuid4().hex}")
    path = store.join(folder, "probe")
    before, came = store.statistics().retries, False
    try:
        yield f"writing {path}"
        begun = time.perf_counter()
        store.write_bytes(path, body)
        up, came = time.perf_counter() - begun, True
        yield f"reading {path}"
        begun = time.perf_counter()
        some = store.read_range(path, 4097, 65536)
        back = store.read_bytes(path)
        down = time.perf_counter() - begun
        if zlib.crc32(back) != zlib.crc32(body) or some != body[4097 : 4097 + 65536]:
            raise V2FError(
                "the bytes read are not the bytes written; do not use this store, or the proxy in front of it"
            )
        yield f"listing {folder}"
        if store.names(folder) != ["probe"]:
            raise V2FError("a written object is not listed; checkpoints would not be found")
        yield f"removing {path}"
        store.remove_folder(folder, "probe")
        if store.names(folder):
            raise V2FError("a removed object is still listed; old checkpoints would never go away")
    except V2FError as error:
        told = str(error).removeprefix(f"{path}: ").removeprefix(f"{folder}: ")
        if came:
            with contextlib.suppress(V2FError):  # the first error is the one to report
                store.remove_folder(folder, "probe")
        yield finding_of("storage", V2FError(told), f"{shown}{access}: ")
        return
    again = store.statistics().retries - before
    text = (
        f"{shown}{access}: {len(body) / MIB:.0f} MiB written ({len(body) / up / 1e6:.0f} MB/s), read back "
        f"({len(back) / down / 1e6:.0f} MB/s) with the same CRC-32, listed, removed"
    )
    if again:
        advice = "check the network and its proxies"
        yield Finding("storage", "look", f"{text}; {again} requests had to be repeated", advice)
    else:
        yield Finding("storage", "ok", text)


def _s3_access(shown: str) -> Generator[Step, None, str | None]:
    """What a finding says of the endpoint and the credentials; None if there are none, which a finding has said."""
    yield "looking for credentials"
    try:
        about = s3.access()
    except OSError as error:  # a missing profile, a malformed address
        yield Finding("storage", "wrong", f"{shown}: {error}", "correct AWS_PROFILE, AWS_ENDPOINT_URL or ~/.aws")
        return None
    access = f" at {about.endpoint}, credentials {about.credentials}"
    yield from _clock("storage", about.endpoint)
    if about.credentials == "none":
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; on a cluster, give the pod a role"
        yield Finding("storage", "wrong", f"{shown}{access}", advice)
        return None
    return access


def mlflow(setup: Setup) -> Iterator[Step]:
    """A round trip in a separate experiment: a run, a metric and a picture are written, read back and deleted."""
    uri = setup.tracking
    if uri is None:
        yield Finding("mlflow", "ok", "not checked: none was named", "--tracking URI makes a round trip to it")
        return
    shown = without_credentials(uri)
    yield "importing MLflow"
    from v2f.runs.config import TrackingConfig
    from v2f.tracking.mlflow_client import round_trip

    try:
        build(TrackingConfig, {"uri": uri}, "--tracking")
        if uri.startswith("sqlite:///") and not os.path.exists(uri.removeprefix("sqlite:///")):
            folder = existing(os.path.dirname(uri.removeprefix("sqlite:///")))
            if os.access(folder, os.W_OK):
                yield Finding("mlflow", "ok", f"{shown}: not there yet, the first run creates it")
            else:
                yield Finding(
                    "mlflow",
                    "wrong",
                    f"{shown}: {folder} cannot be written to",
                    "fix its permissions, or change tracking.uri",
                )
            return
        if uri.startswith(("http://", "https://")):
            yield f"connecting to {shown}"
            yield from _clock("mlflow", uri)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        yield f"a round trip to {shown}"
        text = round_trip(uri)
    except V2FError as error:
        yield finding_of("mlflow", error, "" if str(error).startswith(("--tracking", shown)) else f"{shown}: ")
    else:
        yield Finding("mlflow", "ok", f"{shown}: {text}")


def _clock(check: str, address: str) -> Iterator[Finding]:
    """A finding if this machine's clock and a server's differ: signatures, leases and curves depend on them."""
    try:
        before = time.time()
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5) as answer:
                said = answer.headers.get("Date")
        except urllib.error.HTTPError as error:
            said = error.headers.get("Date")
        apart = (before + time.time()) / 2 - email.utils.parsedate_to_datetime(said).timestamp()
    except (OSError, ValueError, TypeError):
        return  # the round trip will report why there is no answer
    verdict: Verdict = "ok"
    for name in ("look", "wrong"):
        verdict = name if abs(apart) > _CLOCK[name] else verdict  # type: ignore[assignment]
    if verdict != "ok":
        text = f"this machine's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the server's"
        yield Finding(
            check, verdict, text, "synchronize it (chrony, systemd-timesyncd): S3 refuses more than 15 minutes"
        )

"""A real object store on loopback, for tests and benchmarks: OpenStack Swift from PyPI with its S3 door, no container.

    botocore --S3, signed--> proxy server --> account, container and object server --> files with xattrs in one folder
                                  '--> memcached, where it is installed: what the proxy knows of accounts and buckets

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as swift:
        os.environ.update(swift.environment())
        store.write_bytes(f"s3://{swift.bucket}/a", b"...")

Four or five small processes and one copy of everything. Signatures are enforced, and ranges, listings, multipart
uploads and conditional reads are Swift's own, so that a test against it says something about an object store.
"""

import contextlib
import errno
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
from ports import free_ports

START_S = 60.0
_SERVERS = ("account", "container", "object")

_COMMON = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
fallocate_reserve = 0
log_level = WARNING
log_address = {folder}/no-syslog
log_udp_host =
"""

_STORAGE = """
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
disk_chunk_size = 1048576
network_chunk_size = 1048576
# what was read stays in the page cache, as in a store with memory to spare; else each read is one of the disk
keep_cache_size = 1073741824
keep_cache_private = true
"""

# Without it each request asks for its account and bucket anew, which doubles the proxy's work.
_CACHE = """
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{port}
"""

# What s3api needs before and behind it.
_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck {cache} bulk s3api tempauth slo dlo symlink versioned_writes proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
# few large pieces: this store shares its cores with what is tested
object_chunk_size = 1048576
client_chunk_size = 1048576
# one device holds everything, and it is never given up
error_suppression_limit = 1000000
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
min_segment_size = 1
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user_name} = {secret} .admin
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:symlink]
use = egg:swift#symlink
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
"""

# A server must not outlive tests that were killed: PR_SET_PDEATHSIG.
_UNDER_US = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execv(sys.argv[1], sys.argv[1:])
"""

_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder = sys.argv[1]
for name, port in zip(("account", "container", "object"), sys.argv[2:]):
    ring = RingBuilder(4, 1, 0)
    ring.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1})
    ring.rebalance(seed=1)
    ring.get_ring().save(f"{folder}/{name}.ring.gz")
"""


class NoSwiftError(Exception):
    """Why it cannot be started here."""


@dataclass(frozen=True)
class Swift:
    """A store that serves: where, with which keys, with one empty bucket. ``pids`` are its processes."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    pids: tuple[int, ...]

    def client(self) -> Any:
        """botocore's own, to do and see what the tested code should."""
        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What boto3's users set; ``endpoint``: of something that stands before it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,  # nothing of the user's own
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Swift]:
    """Serve from ``folder``, which is empty, until the block ends; :class:`NoSwiftError` where that is impossible."""
    _check(folder)
    ports = dict(zip((*_SERVERS, "proxy", "memcached"), free_ports(5), strict=True))
    user, memcached = pwd.getpwuid(os.getuid()).pw_name, shutil.which("memcached")
    (folder / "devices" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_prefix = v2f\nswift_hash_path_suffix = test\n")
    values = {"user": user, "folder": folder}
    for name in _SERVERS:
        (folder / f"{name}.conf").write_text((_COMMON + _STORAGE).format(name=name, port=ports[name], **values))
    cache = "cache" if memcached else ""
    account, user_name, secret = "v2f", "test", "a-secret-of-no-value"
    (folder / "proxy.conf").write_text(
        (_COMMON + _PROXY).format(
            port=ports["proxy"], account=account, user_name=user_name, secret=secret, cache=cache, **values
        )
        + (_CACHE.format(port=ports["memcached"]) if memcached else "")
    )
    rings = [sys.executable, "-c", _RINGS, str(folder), *(str(ports[name]) for name in _SERVERS)]
    subprocess.run(rings, check=True, cwd=folder)  # not in the tests' folder, where a `swift.py` lies: this file
    with contextlib.ExitStack() as stack:
        own = (*_SERVERS, "proxy")
        commands = {name: [str(_program(name)), str(folder / f"{name}.conf"), "--verbose"] for name in own}
        if memcached:
            commands["memcached"] = [memcached, "-u", user, "-l", "127.0.0.1", "-p", str(ports["memcached"])]
        servers = {name: stack.enter_context(_server(name, command, folder)) for name, command in commands.items()}
        deadline = time.monotonic() + START_S
        for name, server in servers.items():
            _wait(server, name, ports[name], deadline, folder)
        pids = tuple(server.pid for server in servers.values())
        swift = Swift(f"http://127.0.0.1:{ports['proxy']}", f"{account}:{user_name}", secret, "v2f", pids)
        swift.client().create_bucket(Bucket=swift.bucket)
        yield swift


def _check(folder: Path) -> None:
    if not _program("proxy").exists():
        raise NoSwiftError("OpenStack Swift is not installed; it is part of the `dev` extra")
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.setxattr(file.name, "user.v2f", b"x" * 512)
        except (OSError, AttributeError) as error:  # other systems than Linux have no os.setxattr
            raise NoSwiftError(f"Swift needs a file system with extended attributes at {folder} ({error})") from error
    try:
        pwd.getpwuid(os.getuid())
    except KeyError as error:
        raise NoSwiftError("Swift needs a user with a name") from error


def _program(name: str) -> Path:
    return Path(sys.executable).parent / f"swift-{name}-server"


@contextlib.contextmanager
def _server(name: str, command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(folder / f"{name}.log", "wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", _UNDER_US, *command],
            stdout=output, stderr=output, cwd=folder, start_new_session=True,
        )  # fmt: skip
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(server: subprocess.Popen[bytes], name: str, port: int, deadline: float, folder: Path) -> None:
    """Until it takes connections. Polling: the server tells nobody when it is ready."""
    while True:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) not in (errno.ECONNREFUSED, errno.EAGAIN):
                return
        if server.poll() is not None or time.monotonic() > deadline:
            tail = (folder / f"{name}.log").read_text(errors="replace").splitlines()[-3:]
            raise NoSwiftError(f"Swift's {name} server does not start: {' / '.join(tail) or 'it says nothing'}")
        time.sleep(0.05)

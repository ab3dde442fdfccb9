"""PostgreSQL as Debian packages it, for tests: a cluster of its own on loopback, that wants a password."""

import contextlib
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow_server import until
from ports import free_port

PASSWORD = "a-database-password"  # of a cluster that lives for a minute


class NoPostgresError(Exception):
    """Why it cannot be started here."""


@dataclass(frozen=True)
class Postgres:
    """``uri`` names user and database; the password belongs into PGPASSWORD."""

    uri: str
    password: str = PASSWORD


@contextlib.contextmanager
def serving() -> Iterator[Postgres]:
    """A running cluster with the user and the database ``mlflow``; it goes with its files."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not found:
        raise NoPostgresError("no PostgreSQL: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="v2f-postgres-") as folder:  # pytest's own are closed to other users
        run_as: list[str] = []
        if os.getuid() == 0:  # initdb refuses root
            if shutil.which("setpriv") is None:
                raise NoPostgresError(
                    "PostgreSQL refuses to run as root, and there is no setpriv to be another user by"
                )
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            run_as = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        port = free_port()
        secret, log = Path(folder, "password"), Path(folder, "log")
        secret.write_text(PASSWORD)
        secret.chmod(0o644)  # the folder itself is closed
        environment = os.environ | {"PGPASSWORD": PASSWORD, "LC_ALL": "C"}

        def call(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [*run_as, f"{found[-1]}/{program}", *arguments], env=environment, cwd=folder, capture_output=True
            )
            assert done.returncode == 0, done.stderr.decode()

        call("initdb", "-D", f"{folder}/data", "-U", "mlflow", "--pwfile", str(secret), "-A", "scram-sha-256", "-N")
        settings = ["listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={folder}", "fsync=off"]
        with log.open("wb") as said:
            server = subprocess.Popen(
                [*run_as, f"{found[-1]}/postgres", "-D", f"{folder}/data", *(f"--{each}" for each in settings)],
                stdout=said,
                stderr=said,
                cwd=folder,
            )
        try:

            def ready() -> bool:
                assert server.poll() is None, log.read_text()
                with contextlib.suppress(AssertionError):
                    call("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port))
                    return True
                return False

            until(ready)
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow")
            yield Postgres(f"postgresql://mlflow@127.0.0.1:{port}/mlflow")
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, whoever is connected
            server.wait()

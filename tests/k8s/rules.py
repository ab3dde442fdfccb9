"""What the manifests under k8s/ promise, a rule for each promise: from the objects of one overlay to problems.

Each rule also knows ways to break it in every object that it covers, and the tests go them all: a rule that does not
notice is no rule.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from network import flows
from rendered import (
    REPOSITORY,
    Object,
    World,
    containers,
    documented_secrets,
    environment,
    has_pods,
    jobs,
    name_of,
    pods,
    role,
    templates,
)

from v2f import __version__
from v2f.training.stopping import MISTAKE, STOPPED

SAVE_S = 120  # what a training run needs at least from SIGTERM on: a step, 849 MB to a store, the last points
Break = Callable[[Object], Iterator[Object | None]]
"""Broken copies of an object; None: it is not there at all."""


@dataclass(frozen=True)
class Rule:
    """``problems`` of an object among all of its overlay, where it ``covers`` it; ``missing``: what is not there."""

    promise: str
    covers: Callable[[Object], bool]
    problems: Callable[[Object, World], Iterable[str]]
    breaks: tuple[Break, ...]
    missing: Callable[[World], Iterable[str]] = lambda objects: ()

    def check(self, objects: World) -> Iterator[str]:
        """What is wrong, in the order of the objects."""
        for each in objects:
            yield from self.about(each, objects)
        try:
            yield from self.missing(objects)
        except _GONE as error:
            yield f"{type(error).__name__}: {error}"

    def about(self, found: Object, objects: World) -> Iterator[str]:
        """What is wrong with one of them."""
        try:
            if self.covers(found):
                yield from (f"{name_of(found)}: {problem}" for problem in self.problems(found, objects))
        except _GONE as error:
            name = found.get("metadata", {}).get("name")
            yield f"{found.get('kind')}/{name}: {type(error).__name__}: {error}"


_GONE = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What a rule raises where a key that the promise needs is not there."""


# ---------------------------------------------------------------------------------------------- breaking


def edit(where: Callable[[Object], Iterable[Any]], *changes: Callable[[Any], object]) -> Break:
    """Every one of ``changes`` at every place that ``where`` finds, one at a time."""

    def broken(original: Object) -> Iterator[Object]:
        for number in range(len(list(where(original)))):
            for change in changes:
                other = copy.deepcopy(original)
                change(list(where(other))[number])
                yield other

    return broken


def gone(original: Object) -> Iterator[None]:
    yield None


def without(*keys: str) -> tuple[Callable[[Any], object], ...]:
    """Changes that take away one key each; ``a.b`` is b in a."""

    def remover(key: str) -> Callable[[Any], object]:
        def remove(node: Any) -> None:
            *parents, last = key.split(".")
            for parent in parents:
                node = node[parent]
            del node[last]

        return remove

    return tuple(map(remover, keys))


def setting(**values: Any) -> tuple[Callable[[Any], object], ...]:
    """Changes that set one key each; ``a__b`` is b in a."""

    def setter(key: str, value: Any) -> Callable[[Any], object]:
        def put(node: Any) -> None:
            *parents, last = key.split("__")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value

        return put

    return tuple(setter(key, value) for key, value in values.items())


def whole(found: Object) -> Iterator[Object]:
    yield found


# --------------------------------------------------------------------------------------------- what is covered


def is_job(found: Object) -> bool:
    return any(True for _ in jobs(found))


def is_training(found: Object) -> bool:
    return is_job(found) and role(found) == "train"


def is_kind(*kinds: str) -> Callable[[Object], bool]:
    return lambda found: found["kind"] in kinds


def serves(found: Object) -> bool:
    return found["kind"] in ("Deployment", "StatefulSet")


def is_namespaced(found: Object) -> bool:
    return found["kind"] not in ("Namespace", "ClusterQueue", "ResourceFlavor")


Problems = Callable[[Object, World], Iterable[str]]


def of_job(name: str, problems: Problems) -> Problems:
    """Problems of that Job, for another object that it depends on."""
    return lambda found, objects: problems(of(objects, "Job")[name], objects)


def of(objects: World, kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


# --------------------------------------------------------------------------------------------- pods


def not_root(found: Object, objects: World) -> Iterator[str]:
    for pod in pods(found):
        if pod["securityContext"]["runAsNonRoot"] is not True:
            yield "runAsNonRoot is not set"
        for key in ("runAsUser", "runAsGroup", "fsGroup"):
            if pod["securityContext"][key] < 1:
                yield f"{key} is root's"
    for container in containers(found):
        for key in ("runAsUser", "runAsGroup", "runAsNonRoot"):
            if key in container["securityContext"]:
                yield f"container {container['name']} has a {key} of its own"


def read_only(found: Object, objects: World) -> Iterator[str]:
    for container in containers(found):
        if container["securityContext"]["readOnlyRootFilesystem"] is not True:
            yield f"container {container['name']} can write to its root file system"


def no_rights(found: Object, objects: World) -> Iterator[str]:
    for container in containers(found):
        context = container["securityContext"]
        if context["capabilities"] != {"drop": ["ALL"]}:
            yield f"container {container['name']} keeps or adds capabilities"
        if context["allowPrivilegeEscalation"] is not False or context.get("privileged"):
            yield f"container {container['name']} can become privileged"
        if context.get("procMount", "Default") != "Default":
            yield f"container {container['name']} sees more of /proc"


def seccomp(found: Object, objects: World) -> Iterator[str]:
    for pod in pods(found):
        if pod["securityContext"]["seccompProfile"] != {"type": "RuntimeDefault"}:
            yield "no seccomp profile of the runtime"
    for container in containers(found):
        if "seccompProfile" in container["securityContext"]:
            yield f"container {container['name']} has a seccomp profile of its own"


_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret", "downwardAPI", "csi", "ephemeral"}


def apart(found: Object, objects: World) -> Iterator[str]:
    for pod in pods(found):
        for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            if pod.get(key):
                yield f"{key} is set"
        for volume in pod["volumes"]:
            if len(volume) != 2 or not set(volume) - {"name"} <= _VOLUMES:
                yield f"volume {volume['name']} is of the node, or of nothing"
        if pod["enableServiceLinks"] is not False:
            yield "Services set variables such as MLFLOW_PORT, which programs read"
    for container in containers(found):
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"container {container['name']} takes a port of the node"


def resources(found: Object, objects: World) -> Iterator[str]:
    for container in containers(found):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        for name in ("cpu", "memory"):
            if not 0 < quantity(requests[name]) <= quantity(limits[name]):
                yield f"container {container['name']}: {name} is not requested within its limit"
        for name in {*requests, *limits} - {"cpu", "memory"}:  # devices: both, alike, whole
            if requests[name] != limits[name] or int(limits[name]) < 1:
                yield f"container {container['name']}: {name} is not asked for as Kubernetes wants it"


_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {f"{prefix}i": 1024.0 ** (power + 1) for power, prefix in enumerate("KMGT")}


def quantity(text: Any) -> float:
    """The number that a Kubernetes quantity means."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[kMGT]|[KMGT]i|)", str(text))
    if match is None:
        raise ValueError(f"{text} is no quantity")
    return float(match[1]) * _UNITS[match[2]]


def needs_shm(found: Object) -> bool:
    return has_pods(found) and role(found) in ("train", "postgres")


def shared_memory(found: Object, objects: World) -> Iterator[str]:
    for pod in pods(found):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            (name,) = [m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
            volume = volumes[name]["emptyDir"]
            if volume.get("medium") != "Memory":
                yield "/dev/shm is not memory"
            limit = quantity(container["resources"]["limits"]["memory"])
            if not quantity("64Mi") < quantity(volume["sizeLimit"]) <= limit / 2:
                yield "/dev/shm is not larger than the runtime's own, or takes over half of the memory limit"


_WRITTEN = ["TMPDIR", "HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"]
_WRITTEN += ["V2F_SCRATCH"]


def runs_v2f(container: Object) -> bool:
    return container["image"].partition(":")[0].rpartition("/")[2] == "v2f"


def writable(found: Object, objects: World) -> Iterator[str]:
    for pod in pods(found):
        claimed = {c["metadata"]["name"] for c in found["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in pod["volumes"]} | claimed
        mounted: set[str] = set()
        for container in pod["containers"]:
            mounts = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
            mounted |= {m["name"] for m in container["volumeMounts"]}
            if not mounted <= volumes:
                yield f"container {container['name']} mounts what is no volume"
            if "/tmp" not in mounts:
                yield f"container {container['name']} cannot write to /tmp"
            values = environment(container, objects, lambda name, key: "")
            ours = runs_v2f(container)
            for path in [values[n] for n in _WRITTEN] if ours else [values["PGDATA"], "/var/run/postgresql"]:
                if not any(f"{path}/".startswith(f"{mount}/") for mount in mounts):
                    yield f"container {container['name']} cannot write to {path}"
            for text in container.get("args", []):  # a cache for the node lies in a volume, and fits
                if text.startswith("data.cache.gb="):
                    (size,) = [v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "scratch"]
                    if float(text.partition("=")[2]) * 1e9 > 0.95 * quantity(size):
                        yield "the cache does not fit into its volume"
        for volume in pod["volumes"]:
            if "emptyDir" in volume and quantity(volume["emptyDir"]["sizeLimit"]) <= 0:
                yield f"volume {volume['name']} has no limit"
            if volume["name"] not in mounted:
                yield f"volume {volume['name']} is mounted nowhere"


# What each kind of pod must be given, by name, out of a Secret.
_GIVEN = {
    "pack": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "finalize": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "train": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"},
    "account": {"MLFLOW_TRACKING_PASSWORD", "NAME", "PASSWORD"},
    "postgres": {"POSTGRES_PASSWORD"},
    "mlflow": {
        "PGPASSWORD", "V2F_MLFLOW_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    },
}  # fmt: skip
_SECRET_NAME = re.compile(r"PASS|PWD|SECRET|TOKEN|CRED|PRIVATE|KEY", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"://[^/\s@]*:[^/\s@]*@")
_LOOKS_SECRET = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|\beyJ[\w-]{20,}|\b[0-9a-f]{40,}\b")


def telltale(text: str) -> bool:
    return bool(_IN_ADDRESS.search(text) or _LOOKS_SECRET.search(text))


def secrets(found: Object, objects: World) -> Iterator[str]:
    if found["kind"] == "Secret":
        yield "a Secret has no place in a repository"
        return
    for name, value in found.get("data", {}).items() if found["kind"] == "ConfigMap" else ():
        if _SECRET_NAME.search(name) or telltale(value):
            yield f"{name} looks like a secret"
    known = documented_secrets()
    for container in containers(found):
        referred = set()
        if any("secretRef" in source for source in container.get("envFrom", [])):
            yield f"container {container['name']} takes a whole Secret, and whatever is added to it"
        for each in container.get("env", []):
            reference = each.get("valueFrom", {}).get("secretKeyRef")
            if reference is None and (_SECRET_NAME.search(each["name"]) or telltale(each["value"])):
                yield f"container {container['name']}: {each['name']} stands here in the open"
            if reference is not None:
                referred.add(each["name"])
                if reference["key"] not in known[reference["name"]] or reference.get("optional"):
                    yield f"container {container['name']}: {each['name']} is in no Secret that launch/kubernetes makes"
        if referred != (given := _GIVEN[role(found)]):
            yield f"container {container['name']} is given {sorted(referred)} of Secrets, not {sorted(given)}"
        for text in [*container.get("command", []), *container.get("args", [])]:
            if telltale(text) or re.search(r"\$\((?:\w*(?:PASSWORD|SECRET|TOKEN)\w*|AWS_ACCESS_KEY_ID)\)", text):
                yield f"container {container['name']}: a secret would stand in its command line"
    for pod in pods(found):
        if any("secret" in volume for volume in pod["volumes"]):
            yield "a Secret is mounted, which nothing here reads"


def images(found: Object, objects: World) -> Iterator[str]:
    for container in containers(found):
        match = re.fullmatch(r"([\w.:/-]+?)(?::([\w.-]+))?(?:@sha256:([0-9a-f]{64}))?", container["image"])
        if match is None or not (match[2] or match[3]) or match[2] == "latest":
            yield f"container {container['name']}: {container['image']} is not pinned"
        elif match[2] and not re.search(r"\d+\.\d+", match[2]):
            yield f"container {container['name']}: {container['image']} is pinned to no version"
        elif runs_v2f(container) and match[2] != __version__:
            yield f"container {container['name']}: {container['image']} is not v2f {__version__}"
        if container.get("imagePullPolicy", "IfNotPresent") == "Never":
            yield f"container {container['name']} takes whatever lies on the node"


def accounts(found: Object, objects: World) -> Iterator[str]:
    if found["kind"] == "ServiceAccount":
        if found["automountServiceAccountToken"] is not False:
            yield "its token is mounted"
        return
    for pod in pods(found):
        if pod["serviceAccountName"] != role(found) or pod["serviceAccountName"] not in of(objects, "ServiceAccount"):
            yield "it has no account of its own"
        if pod["automountServiceAccountToken"] is not False:
            yield "an API token is mounted"


def namespace(found: Object, objects: World) -> Iterator[str]:
    labels = found["metadata"]["labels"]
    for mode in ("enforce", "warn", "audit"):
        if labels[f"pod-security.kubernetes.io/{mode}"] != "restricted":
            yield f"pods are not held to `restricted` ({mode})"
    if not re.fullmatch(r"v1\.\d+", labels["pod-security.kubernetes.io/enforce-version"]):
        yield "what `restricted` means changes with the cluster"


def one_namespace(found: Object, objects: World) -> Iterator[str]:
    if found["metadata"]["namespace"] != "v2f":
        yield "it is not in the namespace v2f"


def no_namespace(objects: World) -> Iterator[str]:
    if list(of(objects, "Namespace")) != ["v2f"]:
        yield "there is no namespace v2f"


# --------------------------------------------------------------------------------------------- jobs


def saves(found: Object, objects: World) -> Iterator[str]:
    for pod in pods(found):
        least = SAVE_S if role(found) == "train" else 30
        if pod["terminationGracePeriodSeconds"] < least:
            yield f"a pod is killed before it has {'saved' if role(found) == 'train' else 'tidied up'}"


def failure_policy(found: Object, objects: World) -> Iterator[str]:
    for job in jobs(found):
        names = [container["name"] for container in job["template"]["spec"]["containers"]]
        acts: dict[Any, str] = {}
        for rule in job["podFailurePolicy"]["rules"]:  # the first that fits decides
            for condition in rule.get("onPodConditions", []):
                if condition["status"] == "True":
                    acts.setdefault(condition["type"], rule["action"])
            codes = rule.get("onExitCodes")
            if codes is not None:
                if codes["operator"] != "In" or [codes["containerName"]] != names:
                    yield "a rule of podFailurePolicy is about other codes or another container"
                for code in codes["values"]:
                    acts.setdefault(code, rule["action"])
        wanted = {"DisruptionTarget": "Ignore"}
        wanted |= {MISTAKE: "FailJob", STOPPED: "Ignore"} if role(found) == "train" else {2: "FailJob"}
        if acts != wanted:
            yield f"podFailurePolicy does {acts}, not {wanted}"


def starts_again(found: Object, objects: World) -> Iterator[str]:
    for job in jobs(found):
        if job["template"]["spec"]["restartPolicy"] != "Never":
            yield "a failed container is started again on the same node, past podFailurePolicy"
        if job["podReplacementPolicy"] != "Failed":
            yield "a pod's successor starts while it still saves"
        if "activeDeadlineSeconds" in job or "activeDeadlineSeconds" in job["template"]["spec"]:
            yield "a deadline would fail it"
        if role(found) == "train":
            if "backoffLimitPerIndex" in job:
                yield "an index that is given up leaves the others waiting"
            if job["backoffLimit"] < max(6, 6 * job.get("completions", 1)):
                yield "a few losses of pod 0, which count once a pod, would fail it"
        elif job["backoffLimitPerIndex" if job.get("completionMode") == "Indexed" else "backoffLimit"] < 3:
            yield "it is given up after a few failures"


def probes(found: Object, objects: World) -> Iterator[str]:
    for container in containers(found):
        ports = {port["name"] for port in container["ports"]}
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[name]
            if "httpGet" in probe:
                if probe["httpGet"]["path"] != "/health" or probe["httpGet"]["port"] not in ports:
                    yield f"{name} asks for something that needs a login, or at another port"
            elif probe["exec"]["command"][0] != "pg_isready" or "--host=127.0.0.1" not in probe["exec"]["command"]:
                yield f"{name} does not ask whether the database takes connections"
        start = container["startupProbe"]
        if start["periodSeconds"] * start["failureThreshold"] < 120:
            yield "a first start that takes two minutes is killed"


def no_probes(found: Object, objects: World) -> Iterator[str]:
    for container in containers(found):
        if any(name in container for name in ("livenessProbe", "readinessProbe", "startupProbe")):
            yield "a probe on a program that serves nothing can only kill it; the trainer has its watchdog"


_LAUNCH = ["v2f", "exec", "torchrun"]


def meets(found: Object, objects: World) -> Iterator[str]:
    """An Indexed Job and a headless Service, and torchrun told of both."""
    if found["kind"] == "TrainingRuntime":
        for container in containers(found):
            if container["command"][:3] != _LAUNCH or container["command"][3:] != ["v2f/train.py", "--resume=auto"]:
                yield "it does not start what PET_* are for"
            policy, gpus = found["spec"]["mlPolicy"], int(container["resources"]["limits"]["nvidia.com/gpu"])
            if policy["torch"]["numProcPerNode"] != gpus or policy["numNodes"] < 1:
                yield "it starts another number of processes than the pod has GPUs"
        (step,) = found["spec"]["template"]["spec"]["replicatedJobs"]
        labels = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
        if (step["name"], step["template"]["metadata"]["labels"]) != ("node", labels):
            yield "the controller does not find the trainer's pods"
        return
    (job,), (container,) = jobs(found), containers(found)
    values = environment(container, objects, lambda name, key: "")
    if job["completionMode"] != "Indexed" or job["completions"] != job["parallelism"]:
        yield "its pods have no stable names, or do not run at once"
    if int(values["NODES"]) != job["completions"]:
        yield f"NODES is {values['NODES']}, but the Job has {job['completions']} pods"
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    if (int(values["PROCESSES"]) != int(gpus)) if gpus else (values["PROCESSES"] != "1"):
        yield f"PROCESSES is {values['PROCESSES']}, but a pod has {gpus or 'no'} GPUs"
    if gpus and job["completions"] > 1 and not any("nccl-" in s["configMapRef"]["name"] for s in container["envFrom"]):
        yield "NCCL is not told of the network between its nodes"
    if job["successPolicy"] != {"rules": [{"succeededIndexes": "0"}]}:
        yield "a pod that trips after the last checkpoint fails the run"
    service = of(objects, "Service")[job["template"]["spec"]["subdomain"]]
    if service["spec"]["clusterIP"] != "None" or service["spec"]["publishNotReadyAddresses"] is not True:
        yield "its Service is not headless, or gives names to pods that are ready only"
    if service["spec"]["selector"] != job["template"]["metadata"]["labels"]:
        yield "its Service selects other pods"
    name, ports = found["metadata"]["name"], {port["port"] for port in service["spec"]["ports"]}
    host = f"{name}-0.{service['metadata']['name']}.{found['metadata']['namespace']}.svc.cluster.local"
    command = container["command"]
    flags = dict(word.split("=", 1) for word in command if word.startswith("--"))
    wanted = {
        "--nnodes": "$(NODES)",
        "--nproc-per-node": "$(PROCESSES)",
        "--rdzv-backend": "c10d",
        "--rdzv-endpoint": f"{host}:29500",
        "--rdzv-id": name,
        "--resume": "auto",
    }
    if command[:3] != _LAUNCH or "v2f/train.py" not in command or not wanted.items() <= flags.items():
        yield f"its launcher is not told {wanted}"
    if values["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] != "1":
        yield "the agent in a lost pod's place would look for the ranks' address where nobody writes it"
    if int(flags["--max-restarts"]) < 1 or "join_timeout=" not in flags["--rdzv-conf"]:
        yield "a lost pod ends the others, or they do not wait for its successor"
    if {port["containerPort"] for port in container["ports"]} != {29500} or ports != {29500}:
        yield "it does not say the port that it listens on"


def parts(found: Object, objects: World) -> Iterator[str]:
    """Pod i packs part i of as many as there are pods; finalize reads the same recipe."""
    (job,), (container,) = jobs(found), containers(found)
    (last,) = containers(of(objects, "Job")["finalize"])
    if job["completionMode"] != "Indexed" or job["parallelism"] > job["completions"]:
        yield "its pods are not counted"
    if container["command"] != ["v2f", "shards", "pack"] or last["command"] != ["v2f", "shards", "finalize"]:
        yield "it does not pack, or finalize does not finalize"
    if f"--part=$(JOB_COMPLETION_INDEX)/{job['completions']}" not in container["args"]:
        yield "the parts are not those of the Job's pods"
    if f"workers={max(1, int(quantity(container['resources']['limits']['cpu'])))}" not in container["args"]:
        yield "it starts a process for each core of the node, not of the pod"
    if [word for word in container["args"] if not word.startswith(("--part=", "workers="))] != last["args"]:
        yield "finalize is told another recipe than the parts"
    out = [word.partition("=")[2] for word in container["args"] if word.startswith("out=")]
    data = [w.partition("=")[2] for o in objects for w in arguments_of(o) if w.startswith("data.path=")]
    if out != data or not (REPOSITORY / container["args"][0]).is_file():
        yield "what is packed is not what is trained on, or there is no such recipe"


def arguments_of(found: Object) -> list[str]:
    """What a training run is told, whoever starts it."""
    if found["kind"] == "TrainJob":
        return list(found["spec"]["trainer"]["args"])
    return [w for c in containers(found) for w in c.get("args", [])] if is_training(found) else []


def trains(found: Object) -> bool:
    return bool(arguments_of(found)) or (found["kind"] == "Job" and is_training(found))


def work(found: Object, objects: World) -> Iterator[str]:
    told = dict(word.split("=", 1) for word in arguments_of(found))
    if not (REPOSITORY / told["--config"]).is_file():
        yield f"there is no recipe {told['--config']}"
    for key in ("out", "data.path"):
        if not told[key].startswith("$(BUCKET)/"):
            yield f"{key} is not in the object store, which all pods reach"
    if told["tracking.uri"] != "http://mlflow:5000":
        yield "it does not log to the tracking server"


# --------------------------------------------------------------------------------------------- servers, references


def services(found: Object, objects: World) -> Iterator[str]:
    ports = [
        (port["name"], port["containerPort"])
        for each in objects
        for template in templates(each)
        if found["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        for container in template["spec"]["containers"]
        for port in container.get("ports", [])
    ]
    if len([o for o in objects for t in templates(o) if t["metadata"]["labels"] == found["spec"]["selector"]]) != 1:
        yield "it selects the pods of nobody, or of several"
    for port in found["spec"]["ports"]:
        target = port.get("targetPort", port["port"])
        if not any(target in both for both in ports):
            yield f"nothing listens at {target} of the pods that it selects"
    if found["spec"].get("type", "ClusterIP") != "ClusterIP":
        yield "it can be reached from outside the cluster"


def no_service(objects: World) -> Iterator[str]:
    wanted = {"mlflow": 5000, "postgres": 5432} | ({"train": 29500} if "train" in of(objects, "Job") else {})
    found = {name: each["spec"]["ports"][0]["port"] for name, each in of(objects, "Service").items()}
    if found != wanted:
        yield f"the Services are {found}, not {wanted}"


def workloads(objects: World) -> Iterator[str]:
    found = {name_of(each) for each in objects if has_pods(each) or each["kind"] == "TrainJob"}
    train = {"Job/train"} if "Job/train" in found else {"TrainingRuntime/v2f", "TrainJob/thesis"}
    wanted = {"StatefulSet/postgres", "Deployment/mlflow", "Job/account", "Job/pack", "Job/finalize", *train}
    if found != wanted:
        yield f"there are {sorted(found)}, not {sorted(wanted)}"


def selects_its_own(found: Object, objects: World) -> Iterator[str]:
    (template,) = templates(found)
    if found["spec"]["selector"]["matchLabels"] != template["metadata"]["labels"] or found["spec"]["replicas"] != 1:
        yield "it does not keep one pod"
    (container,) = containers(found)
    values = environment(container, objects, lambda name, key: "")
    if found["kind"] == "Deployment":
        if found["spec"]["strategy"] != {"type": "Recreate"}:
            yield "two versions would write one database"
        wanted = {
            "V2F_MLFLOW_DATABASE": "postgresql://mlflow@postgres:5432/mlflow",
            "V2F_MLFLOW_ARTIFACTS": f"{values['BUCKET']}/mlflow",
            "V2F_MLFLOW_HOST": "0.0.0.0",
            "V2F_MLFLOW_PORT": str(container["ports"][0]["containerPort"]),
            "V2F_MLFLOW_NAMES": "mlflow,mlflow.v2f,mlflow.v2f.svc",
        }
        if container["command"] != ["mlflow/serve"] or not wanted.items() <= values.items():
            yield f"mlflow/serve is not told {wanted}"
        if not (REPOSITORY / container["command"][0]).is_file():
            yield "there is no mlflow/serve"
    else:
        if of(objects, "Service")[found["spec"]["serviceName"]]["spec"]["clusterIP"] != "None":
            yield "its Service is not headless"
        if (values["POSTGRES_USER"], values["POSTGRES_DB"]) != ("mlflow", "mlflow"):
            yield "it makes another database than MLflow asks for"


def keeps(found: Object, objects: World) -> Iterator[str]:
    """A database outlives its pod, and its StatefulSet."""
    (claim,), (container,) = found["spec"]["volumeClaimTemplates"], containers(found)
    (mount,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == claim["metadata"]["name"]]
    (data,) = [each["value"] for each in container["env"] if each["name"] == "PGDATA"]
    if not data.startswith(f"{mount}/"):
        yield "its data do not lie in the volume, or in its root, where lost+found is"
    if quantity(claim["spec"]["resources"]["requests"]["storage"]) < quantity("10Gi"):
        yield "its volume is small"
    if claim["spec"]["accessModes"] != ["ReadWriteOnce"]:
        yield "its volume may be mounted twice"
    kept = found["spec"]["persistentVolumeClaimRetentionPolicy"]
    if kept != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
        yield "its volume goes with it"


STAGES = ["1-services", "2-account", "3-pack", "4-finalize", "5-train"]
_STAGE_OF = {"account": 1, "pack": 2, "finalize": 3, "train": 4}


def staged(found: Object, objects: World) -> Iterator[str]:
    name = role(found) if has_pods(found) else found["metadata"]["name"] if found["kind"] == "Service" else ""
    wanted = STAGES[4 if found["kind"] == "TrainJob" else _STAGE_OF.get(name, 0)]
    if found["metadata"]["labels"]["v2f/stage"] != wanted:
        yield f"launch/kubernetes does not apply it at {wanted}"


def queued(found: Object, objects: World) -> Iterator[str]:
    """Kueue: the Job waits in a queue that is there, whose quota is enough for it."""
    (job,), (container,) = jobs(found), containers(found)
    local = of(objects, "LocalQueue")[found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]]
    queue = of(objects, "ClusterQueue")[local["spec"]["clusterQueue"]]
    if job["suspend"] is not True:
        yield "it starts before the queue lets it"
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    quota = {each["name"]: quantity(each["nominalQuota"]) for each in flavor["resources"]}
    if [*quota] != group["coveredResources"]:
        yield "the queue's quota is not of the resources that it covers"
    for name, asked in container["resources"]["requests"].items():
        if quantity(asked) * job["parallelism"] > quota[name]:
            yield f"the queue never has enough {name}"
    selector = job["template"]["spec"]["nodeSelector"]
    if of(objects, "ResourceFlavor")[flavor["name"]]["spec"]["nodeLabels"] != selector:
        yield "the quota is of other nodes than the pods'"
    space = {"kubernetes.io/metadata.name": local["metadata"]["namespace"]}
    if queue["spec"]["namespaceSelector"]["matchLabels"] != space:
        yield "the queue does not serve the namespace"
    if queue["spec"]["preemption"] != {"withinClusterQueue": "LowerPriority"}:
        yield "who has more right waits"


def is_queued(found: Object) -> bool:
    return "kueue.x-k8s.io/queue-name" in found["metadata"].get("labels", {})


def no_queue(objects: World) -> Iterator[str]:
    there = [bool(of(objects, kind)) for kind in ("LocalQueue", "ClusterQueue", "ResourceFlavor")]
    there += [any(map(is_queued, objects))]
    if any(there) and not all(there):
        yield "a queue, a quota, a flavor and a Job in them belong together"


def train_job(found: Object, objects: World) -> Iterator[str]:
    reference, trainer = found["spec"]["runtimeRef"], found["spec"]["trainer"]
    runtime = of(objects, reference["kind"])[reference["name"]]
    if reference["apiGroup"] != runtime["apiVersion"].partition("/")[0]:
        yield "its runtime is of another API"
    (container,) = containers(runtime)
    if trainer["numProcPerNode"] != int(container["resources"]["limits"]["nvidia.com/gpu"]) or trainer["numNodes"] < 1:
        yield "it starts another number of processes than a pod has GPUs"


# --------------------------------------------------------------------------------------------- network


def network(found: Object, objects: World) -> Iterable[str]:
    return flows(objects)


# --------------------------------------------------------------------------------------------- the rules


def _volumes_at(path: str) -> Callable[[Object], list[Object]]:
    """The emptyDirs that are mounted there."""
    return lambda found: [
        volume["emptyDir"]
        for pod in pods(found)
        for volume in pod["volumes"]
        for container in pod["containers"]
        for mount in container["volumeMounts"]
        if (mount["mountPath"], mount["name"]) == (path, volume["name"])
    ]


def _secret_variables(found: Object) -> list[Object]:
    return [each for container in containers(found) for each in container.get("env", []) if "valueFrom" in each]


def _rules_of_failure(found: Object) -> list[Object]:
    return [job["podFailurePolicy"] for job in jobs(found)]


def _each_rule_gone(original: Object) -> Iterator[Object]:
    for number, policy in enumerate(_rules_of_failure(original)):
        for rule in range(len(policy["rules"])):
            other = copy.deepcopy(original)
            del _rules_of_failure(other)[number]["rules"][rule]
            yield other


def _each_action_turned(original: Object) -> Iterator[Object]:
    for number, policy in enumerate(_rules_of_failure(original)):
        for rule in range(len(policy["rules"])):
            other = copy.deepcopy(original)
            _rules_of_failure(other)[number]["rules"][rule]["action"] = "Count"
            yield other


def _open(variable: Any) -> None:
    del variable["valueFrom"]
    variable["value"] = "hunter2-hunter2"


def _tag(text: str) -> Callable[[Any], object]:
    return lambda container: container.update(image=container["image"].partition(":")[0] + text)


def _word_gone(where: str) -> Break:
    """Each word of every container's command or arguments taken away."""

    def broken(original: Object) -> Iterator[Object]:
        for number, container in enumerate(containers(original)):
            for word in range(len(container[where])):
                other = copy.deepcopy(original)
                del list(containers(other))[number][where][word]
                yield other

    return broken


RULES = [
    Rule("pods do not run as root", has_pods, not_root, (
        edit(pods, *without("securityContext", "securityContext.runAsNonRoot", "securityContext.runAsUser"),
             *setting(securityContext__runAsNonRoot=False, securityContext__runAsUser=0),
             *setting(securityContext__runAsGroup=0)),
        edit(containers, *setting(securityContext__runAsUser=0, securityContext__runAsNonRoot=False)),
    )),
    Rule("root file systems are read-only", has_pods, read_only, (
        edit(containers, *without("securityContext", "securityContext.readOnlyRootFilesystem"),
             *setting(securityContext__readOnlyRootFilesystem=False)),
    )),
    Rule("containers have no capabilities", has_pods, no_rights, (
        edit(containers, *without("securityContext", "securityContext.capabilities",
             "securityContext.capabilities.drop", "securityContext.allowPrivilegeEscalation"),
             *setting(securityContext__privileged=True, securityContext__allowPrivilegeEscalation=True,
                      securityContext__capabilities__add=["IPC_LOCK"], securityContext__capabilities__drop=["NET_RAW"],
                      securityContext__procMount="Unmasked")),
    )),
    Rule("seccomp is the runtime's", has_pods, seccomp, (
        edit(pods, *without("securityContext", "securityContext.seccompProfile"),
             *setting(securityContext__seccompProfile={"type": "Unconfined"})),
        edit(containers, *setting(securityContext__seccompProfile={"type": "Unconfined"})),
    )),
    Rule("pods are apart from their node", has_pods, apart, (
        edit(pods, *without("enableServiceLinks"),
             *setting(hostNetwork=True, hostPID=True, hostIPC=True, enableServiceLinks=True),
             lambda pod: pod["volumes"].append({"name": "node", "hostPath": {"path": "/"}})),
    )),
    Rule("resources are requested and limited", has_pods, resources, (
        edit(containers, *without("resources", "resources.requests", "resources.limits", "resources.limits.memory",
             "resources.limits.cpu", "resources.requests.memory", "resources.requests.cpu"),
             *setting(resources__requests__memory="900Ti", resources__requests__cpu="0")),
    )),
    Rule("/dev/shm is memory, within the limit", needs_shm, shared_memory, (
        edit(_volumes_at("/dev/shm"), *without("medium", "sizeLimit"),
             *setting(medium="", sizeLimit="900Gi"), *setting(sizeLimit="64Mi")),
        edit(containers, lambda container: container["volumeMounts"].pop()),
    )),
    Rule("what is written has a place, and a limit", has_pods, writable, (
        edit(_volumes_at("/tmp"), *without("sizeLimit")),
        edit(containers, lambda c: c.update(volumeMounts=[m for m in c["volumeMounts"] if m["mountPath"] != "/tmp"]),
             lambda c: c.update(volumeMounts=[m for m in c["volumeMounts"] if m["mountPath"] in ("/tmp", "/dev/shm")])),
        edit(pods, lambda pod: pod["volumes"].pop()),
    )),
    Rule("secrets come from Secrets", lambda o: has_pods(o) or o["kind"] in ("ConfigMap", "Secret"), secrets, (
        edit(_secret_variables, _open, *setting(valueFrom__secretKeyRef__name="elsewhere",
             valueFrom__secretKeyRef__key="none", valueFrom__secretKeyRef__optional=True)),
        edit(containers, lambda c: c.setdefault("env", []).append({"name": "API_TOKEN", "value": "x"}),
             lambda c: c.setdefault("env", []).append({"name": "DB", "value": "postgresql://me:word@host/db"}),
             lambda c: c.setdefault("args", []).append("postgresql://me:word@host/db"),
             lambda c: c.setdefault("args", []).append("--password=$(MLFLOW_TRACKING_PASSWORD)"),
             lambda c: c.setdefault("envFrom", []).append({"secretRef": {"name": "s3"}})),
        edit(lambda o: [o["data"]] if o["kind"] == "ConfigMap" else [], *setting(AWS_SECRET_ACCESS_KEY="x"),
             *setting(X="postgresql://me:word@host/db")),
        edit(whole, *setting(kind="Secret")),
    )),
    Rule("images are pinned", has_pods, images, (
        edit(containers, _tag(""), _tag(":latest"), _tag(":stable"), _tag(":9"), *setting(imagePullPolicy="Never")),
        edit(lambda o: [c for c in containers(o) if runs_v2f(c)], _tag(":0.0.1")),
    )),
    Rule("accounts are their own, without a token", lambda o: has_pods(o) or o["kind"] == "ServiceAccount", accounts, (
        edit(pods, *without("serviceAccountName", "automountServiceAccountToken"),
             *setting(serviceAccountName="default", automountServiceAccountToken=True)),
        edit(lambda o: [o] if o["kind"] == "ServiceAccount" else [], *without("automountServiceAccountToken"),
             *setting(automountServiceAccountToken=True)),
    )),
    Rule("the namespace enforces it", is_kind("Namespace"), namespace, (
        edit(lambda o: [o["metadata"]["labels"]], lambda labels: labels.pop("pod-security.kubernetes.io/enforce"),
             lambda labels: labels.pop("pod-security.kubernetes.io/enforce-version"),
             lambda labels: labels.update({"pod-security.kubernetes.io/enforce": "baseline"})),
        gone,
    ), missing=no_namespace),
    Rule("all is in one namespace", is_namespaced, one_namespace, (
        edit(whole, *without("metadata.namespace"), *setting(metadata__namespace="default")),
    )),
    Rule("who is stopped has time to save", has_pods, saves, (
        edit(pods, *without("terminationGracePeriodSeconds"), *setting(terminationGracePeriodSeconds=10)),
        edit(lambda o: pods(o) if is_training(o) else [], *setting(terminationGracePeriodSeconds=30)),
    )),
    Rule("a Job ignores disruptions and fails on the documented code", is_job, failure_policy, (
        edit(jobs, *without("podFailurePolicy", "podFailurePolicy.rules")), _each_rule_gone, _each_action_turned,
        edit(lambda o: [r["onExitCodes"] for p in _rules_of_failure(o) for r in p["rules"] if "onExitCodes" in r],
             *setting(values=[1], operator="NotIn", containerName="other")),
    )),
    Rule("a Job starts again, one pod at a time", is_job, starts_again, (
        edit(jobs, *without("podReplacementPolicy"), *setting(podReplacementPolicy="TerminatingOrFailed",
             template__spec__restartPolicy="OnFailure", activeDeadlineSeconds=3600)),
        edit(lambda o: [j for j in jobs(o) if "backoffLimit" in j], *without("backoffLimit"), *setting(backoffLimit=1)),
        edit(lambda o: [j for j in jobs(o) if "backoffLimitPerIndex" in j], *without("backoffLimitPerIndex"),
             *setting(backoffLimitPerIndex=0)),
        edit(lambda o: jobs(o) if is_training(o) else [], *setting(backoffLimitPerIndex=4)),
    )),
    Rule("what serves is probed", serves, probes, (
        edit(containers, *without("startupProbe", "readinessProbe", "livenessProbe"),
             *setting(startupProbe__failureThreshold=3, livenessProbe={"httpGet": {"path": "/", "port": "http"}},
                      readinessProbe={"exec": {"command": ["true"]}})),
    )),
    Rule("what does not serve is not probed", is_job, no_probes, (
        edit(containers, *setting(livenessProbe={"exec": {"command": ["true"]}})),
    )),
    Rule("ranks meet", is_training, meets, (
        edit(lambda o: jobs(o) if o["kind"] == "Job" else [], *without("completionMode", "completions", "parallelism",
             "successPolicy", "template.spec.subdomain"),
             *setting(completions=7, parallelism=7, template__spec__subdomain="x")),
        edit(lambda o: jobs(o) if o["kind"] == "Job" else [], *setting(parallelism=0, completionMode="NonIndexed")),
        edit(lambda o: [o["spec"]["mlPolicy"]] if o["kind"] == "TrainingRuntime" else [], *without("torch"),
             *setting(torch__numProcPerNode=4)),
        _word_gone("command"),
        gone,
    ), missing=workloads),
    Rule("a training run is told what to do, and where", trains, work, (
        edit(lambda o: containers(o) if has_pods(o) else [o["spec"]["trainer"]], *without("args"),
             lambda c: c.update(args=[w for w in c["args"] if not w.startswith("tracking.uri")]),
             lambda c: c.update(args=[w for w in c["args"] if not w.startswith("--config")]),
             lambda c: c["args"].append("out=/scratch/run"), lambda c: c["args"].append("--config=none.yaml")),
    )),
    Rule("pods pack parts", lambda o: name_of(o) == "Job/pack", parts, (
        edit(jobs, *without("completionMode", "completions"), *setting(completions=3, parallelism=99)),
        _word_gone("command"), _word_gone("args"),
        edit(containers, lambda c: c["args"].append("shard_mb=1"), *setting(resources__limits__cpu="64")),
        gone,
    ), missing=workloads),
    Rule("finalize commits the parts", lambda o: name_of(o) == "Job/finalize", of_job("pack", parts), (
        _word_gone("command"), _word_gone("args"), gone,
    ), missing=workloads),
    Rule("Services lead to their pods", is_kind("Service"), services, (
        edit(whole, *without("spec.selector", "spec.ports"),
             *setting(spec__selector={"v2f/role": "none"}, spec__type="LoadBalancer"),
             *setting(spec__ports=[{"name": "x", "port": 1}])),
        gone,
    ), missing=no_service),
    Rule("the training's Service is headless", lambda o: name_of(o) == "Service/train", of_job("train", meets), (
        edit(whole, *without("spec.clusterIP", "spec.publishNotReadyAddresses"),
             *setting(spec__clusterIP="10.0.0.9", spec__publishNotReadyAddresses=False)),
    )),
    Rule("servers are one, and know of each other", serves, selects_its_own, (
        edit(whole, *without("spec.selector", "spec.replicas"), *setting(spec__replicas=2)),
        edit(lambda o: [o["spec"]["template"]["metadata"]["labels"]], *setting(more="x")),
        edit(containers, lambda c: c.update(env=[e for e in c["env"] if not e["name"].endswith(("_DATABASE", "_DB"))])),
        gone,
    ), missing=workloads),
    Rule("a database outlives its pod", is_kind("StatefulSet"), keeps, (
        edit(whole, *without("spec.volumeClaimTemplates", "spec.persistentVolumeClaimRetentionPolicy"),
             *setting(spec__persistentVolumeClaimRetentionPolicy={"whenDeleted": "Delete", "whenScaled": "Retain"})),
        edit(containers, lambda c: c.update(volumeMounts=[m for m in c["volumeMounts"] if m["name"] != "data"]),
             lambda c: c.update(env=[e for e in c["env"] if e["name"] != "PGDATA"])),
    )),
    Rule("the network lets through what is needed", is_kind("NetworkPolicy"), network, (gone,), missing=flows),
    Rule("the order is in the manifests", lambda o: True, staged, (
        edit(whole, *without("metadata.labels"), *setting(metadata__labels={"v2f/stage": "9-never"})),
    )),
    Rule("a queued training waits for its queue", is_queued, queued, (
        edit(whole, *without("spec.suspend"), *setting(spec__suspend=False, spec__parallelism=99)),
        gone,
    ), missing=no_queue),
    Rule("a TrainJob has its runtime", is_kind("TrainJob"), train_job, (
        edit(whole, *without("spec.runtimeRef"), *setting(spec__runtimeRef__name="x", spec__trainer__numProcPerNode=1)),
        gone,
    ), missing=workloads),
]  # fmt: skip

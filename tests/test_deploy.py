"""The files of deploy/: each parsed, held against its schema where one is at hand, and against what they promise."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
SECRET = re.compile(r"[0-9a-f]{32,}|AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}")


def loaded(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def manifests(name: str) -> dict[str, dict[str, Any]]:
    """Kubernetes objects by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all((DEPLOY / name).read_text())}


def walk(node: Any) -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield str(key), value
        yield from walk(value)


def overrides_of(command: str) -> list[str]:
    """What follows launch.py."""
    return re.findall(r"[\w.]+=[^\s\"']+", command.partition("launch.py")[2])


def assert_composes(*overrides: str) -> None:
    from tests.sweeps.tiny import composed

    assert composed(*overrides).cluster.name == "ray"


def test_every_file_is_known_here() -> None:
    assert {path.name for path in DEPLOY.iterdir()} == {
        "compose.yaml", "kuberay-cluster.yaml", "kuberay-job.yaml", "ray-up.yaml", "slurm.sh",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_token_authentication_is_on_and_no_secret_is_in_the_file(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"RAY_AUTH_MODE[=:] ?token|authOptions:\s+mode: token", text)
    assert not SECRET.search(text)
    assert "RAY_AUTH_MODE=disabled" not in text


# ray up


def test_ray_up_is_accepted_by_rays_own_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = loaded("ray-up.yaml")
    validate_config(prepare_config(config))
    head, spot = config["available_node_types"]["head"], config["available_node_types"]["gpu_spot"]
    assert head["resources"] == {"CPU": 0}, "no lease on the machine of the driver"
    assert spot["min_workers"] == 0
    assert spot["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    (start,) = [line for line in config["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--user=10001" in config["docker"]["run_options"]
    assert list(config["file_mounts"].values()) == ["~/.ray/auth_token"], "weights come from the driver, once"


def test_ray_up_with_a_mistyped_key_is_refused() -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = loaded("ray-up.yaml") | {"max_wrokers": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config(config))


# Kubernetes


def problems(schema: str, document: Any, kind: str = "") -> list[str]:
    """What a published schema has against a document."""
    import jsonschema

    found = json.loads((ROOT / "tests" / "schemas" / schema).read_text())
    if kind:
        found = {"definitions": found["definitions"], "$ref": f"#/definitions/{kind}"}
    return [error.message for error in jsonschema.Draft7Validator(found).iter_errors(document)]


@pytest.mark.parametrize(("name", "kind"), [("kuberay-cluster.yaml", "RayCluster"), ("kuberay-job.yaml", "RayJob")])
def test_kuberay_manifests_are_what_kuberay_defines(name: str, kind: str) -> None:
    """By its own definitions, which reach into every pod; a mistyped key at any depth is found."""
    manifest = manifests(name)[kind]
    assert problems("kuberay.json", manifest, kind) == []
    mistyped = json.loads(json.dumps(manifest).replace("securityContext", "securityContex", 1))
    assert problems("kuberay.json", mistyped, kind) == [
        "Additional properties are not allowed ('securityContex' was unexpected)"
    ]
    manifest["spec"]["workers"] = 3
    assert problems("kuberay.json", manifest, kind) == [
        "Additional properties are not allowed ('workers' was unexpected)"
    ]


@pytest.mark.parametrize("name", ["kuberay-cluster.yaml", "kuberay-job.yaml"])
def test_kuberay_pods_are_locked_down_and_scale_to_nothing(name: str) -> None:
    found = manifests(name)
    assert {"PersistentVolumeClaim", "NetworkPolicy"} < set(found)
    assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"], "every pod writes records"
    (ray,) = [m for kind, m in found.items() if kind.startswith("Ray")]
    assert ray["apiVersion"] == "ray.io/v1"
    cluster = ray["spec"].get("rayClusterSpec", ray["spec"])
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    claim = found["PersistentVolumeClaim"]["metadata"]["name"]
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
            assert "memory" in container["resources"]["limits"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["replicas"] == 0
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > 20, "a worker drains in 20 seconds"
    assert "NetworkPolicy" in found
    assert not [value for key, value in walk(found) if key in ("hostNetwork", "privileged", "hostPath")]
    ports = [p["port"] for rule in found["NetworkPolicy"]["spec"]["ingress"] for p in rule.get("ports", [])]
    assert set(ports) <= {8265}


def test_the_dashboard_listens_on_the_loopback_or_only_the_operator_reaches_it() -> None:
    cluster = manifests("kuberay-cluster.yaml")["RayCluster"]["spec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    job = manifests("kuberay-job.yaml")
    ours, operator = job["NetworkPolicy"]["spec"]["ingress"]
    label = job["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert job["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == label
    assert [peer["podSelector"]["matchLabels"] for peer in ours["from"]] == [label]
    (peer,) = operator["from"]
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_a_ray_job_ends_by_itself_and_runs_a_valid_command() -> None:
    spec = manifests("kuberay-job.yaml")["RayJob"]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert_composes(*overrides_of(spec["entrypoint"]))


# SLURM


def test_the_slurm_script_is_bash_and_starts_ray_as_symmetric_run_allows(tmp_path: Path) -> None:
    """With stand-ins for SLURM's commands: what srun would have been given, and a token that is gone afterwards."""
    script = DEPLOY / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    folder = tmp_path / "bin"
    folder.mkdir()
    checkout = tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "activate").write_text("")
    token = '[ "$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" = 600 ] && [ $(wc -c < "$RAY_AUTH_TOKEN_PATH") -ge 64 ]'
    for name, body in {
        "srun": f'{token} || exit 9; printf "%s\\n" "$RAY_AUTH_MODE" "$@"',
        "scontrol": "printf 'node1\\nnode2\\n'",
        "openssl": "python3 -c 'import secrets; print(secrets.token_hex(32))'",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    path = f"{folder}:/usr/local/bin:/usr/bin:/bin"
    ended = subprocess.run(
        ["bash", str(script), "sweep=smoke", "run.name=a b"], env=slurm | {"PATH": path}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    mode, *given = ended.stdout.splitlines()
    assert mode == "token"
    assert not list(checkout.glob(".ray-token*"))
    start, _, entry = "\n".join(given).partition("\n--\n")
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    arguments = start.splitlines()
    assert arguments[:3] == ["--kill-on-bad-exit=1", "ray", "symmetric-run"]
    left = curate_and_validate_ray_start_args(arguments[3:])
    assert left == ["--num-cpus", "32", "--num-gpus", "4", "--include-dashboard=false"]
    assert entry.splitlines()[:2] == ["python", "launch.py"]
    assert entry.splitlines()[-1] == "run.name=a b"
    assert_composes(*entry.splitlines()[2:-1])


def test_the_slurm_options_are_those_of_sbatch() -> None:
    """Held against its manual: one that it does not know would end the job before it begins."""
    known = {
        "--job-name", "--nodes", "--ntasks-per-node", "--cpus-per-task", "--gpus-per-node", "--time", "--requeue",
        "--open-mode", "--output", "--error", "--partition", "--account", "--qos", "--mem", "--signal", "--constraint",
    }  # fmt: skip
    lines = (DEPLOY / "slurm.sh").read_text().splitlines()
    options = [line.split()[1].partition("=")[0] for line in lines if line.startswith("#SBATCH")]
    assert options
    assert set(options) <= known
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[first_command:]), (
        "sbatch reads no option after a command"
    )


# docker compose


def test_compose_follows_the_specification() -> None:
    config = loaded("compose.yaml")
    assert problems("compose.json", config) == []
    config["services"]["worker"]["entrypont"] = ["ray"]
    (problem,) = problems("compose.json", config)
    assert "entrypont" in problem


def test_compose_publishes_nothing_and_needs_the_token() -> None:
    config = loaded("compose.yaml")
    assert set(config["services"]) == {"head", "worker", "sweep"}
    for name, service in config["services"].items():
        assert "ports" not in service, f"{name} is reachable from outside"
        assert service["user"] == "10001:10001"
        assert service["cap_drop"] == ["ALL"]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?"), "without one nothing starts"
        assert "privileged" not in service
    assert "--include-dashboard=false" in config["services"]["head"]["entrypoint"]
    (command,) = [part for part in config["services"]["sweep"]["entrypoint"] if "launch.py" in part]
    assert_composes(*overrides_of(command))


# What they rest on


def test_versions_and_users_agree_with_image_and_pins() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line.count("==") == 1
    )
    for name in ("kuberay-cluster.yaml", "kuberay-job.yaml"):
        versions = {value for key, value in walk(list(manifests(name).values())) if key == "rayVersion"}
        assert versions == {pinned["ray"]}
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "--uid 10001 sweep" in dockerfile
    assert re.search(r"^USER sweep$", dockerfile, re.MULTILINE)
    assert "ray[client,tune]>=2.50" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]

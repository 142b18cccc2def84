"""The cluster files go through Ray's own parsers and launcher; clouds are simulated, nothing is started."""

import copy
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import ray
import yaml
from moto import mock_aws
from ray.autoscaler._private import commands
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from soda_dist.config import load_config

ROOT = Path(__file__).parents[2]
AWS, KUBERAY, DOCKERFILE = (ROOT / "cluster" / name for name in ("aws.yaml", "kuberay.yaml", "Dockerfile"))
SCHEMA = Path(ray.__file__).parent / "autoscaler/ray-schema.json"


@pytest.fixture
def aws() -> dict[str, Any]:
    return yaml.safe_load(AWS.read_text())


@pytest.fixture
def kubernetes() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(KUBERAY.read_text())}


@dataclass(frozen=True)
class Account:
    """What `ray up` and the autoscaler would make: the completed configuration, the machines, the open ports."""

    config: dict[str, Any]
    machines: dict[str, dict[str, Any]]
    rules: list[dict[str, Any]]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Account:
    """A simulated AWS account in which one node of each type was launched by Ray's own launcher."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    with pytest.MonkeyPatch.context() as environment, mock_aws():
        environment.setenv("HOME", str(home))
        for name, value in {
            "ACCESS_KEY_ID": "test",
            "SECRET_ACCESS_KEY": "test",
            "DEFAULT_REGION": "us-west-2",
        }.items():
            environment.setenv(f"AWS_{name}", value)
        aws, ec2 = yaml.safe_load(AWS.read_text()), boto3.client("ec2")
        types = aws["available_node_types"].values()
        for profile in {node["node_config"]["IamInstanceProfile"]["Name"] for node in types}:
            boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
        image = ec2.describe_images(Owners=["amazon"], MaxResults=5)["Images"][0]["ImageId"]
        for node in types:
            node["node_config"]["ImageId"] = image
        config = commands._bootstrap_config(aws, no_config_cache=True)
        machines = _launch(config)
        group = config["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
        return Account(
            config, machines, ec2.describe_security_groups(GroupIds=group)["SecurityGroups"][0]["IpPermissions"]
        )


def _launch(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        kind = "head" if name == config["head_node_type"] else "worker"
        tags = {"ray-node-type": kind, "ray-user-node-type": name, "ray-node-name": name}
        provider.create_node(copy.deepcopy(node["node_config"]), tags, 1)
    reservations = boto3.client("ec2").describe_instances()["Reservations"]
    machines = [machine for reservation in reservations for machine in reservation["Instances"]]
    return {tag["Value"]: m for m in machines for tag in m["Tags"] if tag["Key"] == "ray-user-node-type"}


def _autoscaling(kubernetes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    cluster = copy.deepcopy(kubernetes["RayCluster"])
    cluster["metadata"].setdefault("namespace", "default")  # as the API server does
    return _derive_autoscaling_config_from_ray_cr(cluster)


def _wanted(config: dict[str, Any], demand: list[dict[str, float]]) -> tuple[dict[str, int], int]:
    """Nodes that Ray's scheduler would add for `demand` beside an idle head, and how much it could not place."""
    scorer = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    head = config["head_node_type"]
    nodes, left = get_nodes_for(config["available_node_types"], {head: 1}, head, config["max_workers"], demand, scorer)
    return dict(nodes), len(left)


def _imagenet_demand() -> list[dict[str, float]]:
    """What the preset asks for: a bundle for each worker, and the data tasks beside it."""
    scale = load_config("imagenet").scale
    worker = {"GPU": scale.gpus_per_worker, "CPU": scale.cpus_per_worker}
    return [worker] * scale.workers + [{"CPU": 1.0}] * (scale.workers * scale.data_cpus_per_worker)


# AWS


def test_aws_is_accepted_by_schema_and_parser(aws: dict[str, Any]) -> None:
    jsonschema.validate(aws, json.loads(SCHEMA.read_text()))
    prepared = prepare_config(aws)
    validate_config(prepared)
    assert prepared["provider"]["cache_stopped_nodes"] is False
    commands_run = [*prepared["head_setup_commands"], *prepared["worker_setup_commands"], *prepared["setup_commands"]]
    assert commands_run == [], "Ray's defaults would install another Ray"
    assert 0 < prepared["idle_timeout_minutes"] <= 30
    assert prepared["upscaling_speed"] >= 1


def test_aws_head_is_on_demand_and_workers_are_spot_from_zero(account: Account) -> None:
    types = account.config["available_node_types"]
    assert {name: node["min_workers"] for name, node in types.items()} == {"head": 0, "gpu": 0, "cpu": 0}
    market = {name: machine.get("InstanceLifecycle", "on-demand") for name, machine in account.machines.items()}
    assert market == {"head": "on-demand", "gpu": "spot", "cpu": "spot"}
    options = [node["node_config"].get("InstanceMarketOptions") for node in types.values()]
    assert options == [None, {"MarketType": "spot"}, {"MarketType": "spot"}]
    assert {name: node["resources"].get("GPU", 0) for name, node in types.items()} == {"head": 0, "gpu": 8, "cpu": 0}


def test_aws_nodes_reach_storage_by_instance_profile(account: Account) -> None:
    profiles = {name: m["IamInstanceProfile"]["Arn"].rpartition("/")[2] for name, m in account.machines.items()}
    assert profiles == {"head": "soda-dist-head", "gpu": "soda-dist-worker", "cpu": "soda-dist-worker"}


def test_aws_lets_only_ssh_in_from_outside(account: Account) -> None:
    from_outside = [(r.get("FromPort"), r.get("ToPort")) for r in account.rules if r["IpRanges"] or r["Ipv6Ranges"]]
    assert from_outside == [(22, 22)]


def test_aws_nodes_share_the_token_and_ask_for_it(aws: dict[str, Any]) -> None:
    assert aws["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env RAY_AUTH_MODE=token" in aws["docker"]["run_options"]


def test_aws_has_room_for_the_imagenet_preset(account: Account) -> None:
    assert _wanted(account.config, _imagenet_demand()) == ({"gpu": 8}, 0)
    assert _wanted(account.config, [{"CPU": 1.0}] * 40) == ({"cpu": 3}, 0), "preparation must not start GPU nodes"
    assert _wanted(account.config, [{"GPU": 1.0}] * 65) == ({"gpu": 8}, 1)


# Kubernetes


def test_kuberay_is_accepted_by_the_autoscaler(kubernetes: dict[str, dict[str, Any]]) -> None:
    config = _autoscaling(kubernetes)
    groups = {name: (node["min_workers"], node["max_workers"]) for name, node in config["available_node_types"].items()}
    assert groups == {"headgroup": (0, 0), "gpu": (0, 8), "cpu": (0, 4)}
    assert config["available_node_types"]["gpu"]["resources"]["GPU"] == 8
    assert "GPU" not in config["available_node_types"]["headgroup"]["resources"]
    assert config["idle_timeout_minutes"] == 10


def test_kuberay_has_room_for_the_imagenet_preset(kubernetes: dict[str, dict[str, Any]]) -> None:
    config = _autoscaling(kubernetes)
    assert _wanted(config, _imagenet_demand()) == ({"gpu": 8}, 0)
    assert _wanted(config, [{"CPU": 1.0}] * 40) == ({"cpu": 3}, 0), "preparation must not start GPU nodes"


def test_kuberay_job_finds_its_cluster_and_account(kubernetes: dict[str, dict[str, Any]]) -> None:
    cluster, job = kubernetes["RayCluster"], kubernetes["RayJob"]
    assert {document["apiVersion"] for document in (cluster, job)} == {"ray.io/v1"}
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    accounts = {group["template"]["spec"]["serviceAccountName"] for group in groups}
    assert accounts == {kubernetes["ServiceAccount"]["metadata"]["name"]}
    for group in groups[1:]:
        assert group["minReplicas"] == group["replicas"] == 0
        assert group["template"]["spec"]["nodeSelector"]
        assert group["template"]["spec"]["tolerations"]
        limits = group["template"]["spec"]["containers"][0]["resources"]
        assert limits["limits"] == limits["requests"]


def test_kuberay_is_reached_from_inside_only_and_by_token(kubernetes: dict[str, dict[str, Any]]) -> None:
    assert set(kubernetes) == {"ServiceAccount", "RayCluster", "RayJob"}, "no Service, no Ingress"
    assert kubernetes["RayCluster"]["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert kubernetes["RayCluster"]["spec"]["authOptions"] == {"mode": "token"}


# Both


def test_a_stopped_job_has_time_for_its_checkpoint(aws: dict[str, Any], kubernetes: dict[str, dict[str, Any]]) -> None:
    """Ray kills a job three seconds after it asked it to stop."""
    assert any("RAY_JOB_STOP_WAIT_TIME_S=120 ray start --head" in line for line in aws["head_start_ray_commands"])
    pod = kubernetes["RayCluster"]["spec"]["headGroupSpec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "120"} in container["env"]
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_the_versions_are_those_of_the_constraints(kubernetes: dict[str, dict[str, Any]]) -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert kubernetes["RayCluster"]["spec"]["rayVersion"] == pinned["ray"] == ray.__version__


@pytest.mark.parametrize("path", [AWS, KUBERAY, ROOT / "cluster/README.md"], ids=lambda path: path.name)
def test_jobs_and_flags_named_in_the_file_exist(path: Path) -> None:
    commands = re.findall(r"(jobs/\w+\.py)((?:[^\n]|\\\n)*(?:\n +--[^\n]*)*)", path.read_text())
    assert commands
    for job, arguments in commands:
        assert (ROOT / job).is_file()
        source = (ROOT / "soda_dist/commands" / Path(job).name).read_text()
        if job == "jobs/pretrain_imagenet.py":
            source += (ROOT / "soda_dist/commands/pretrain.py").read_text()
        for flag in re.findall(r"(?<= )--[a-z-]+", arguments):
            assert f'"{flag}"' in source, (job, flag)


def test_the_submitted_job_names_data_and_run(kubernetes: dict[str, dict[str, Any]]) -> None:
    job, data, run = re.fullmatch(
        r"python (\S+) --data (\S+) --run (\S+)", kubernetes["RayJob"]["spec"]["entrypoint"].strip()
    ).groups()
    workdir = re.search(r"^WORKDIR (\S+)$", DOCKERFILE.read_text(), re.MULTILINE).group(1)
    assert job == f"{workdir}/jobs/pretrain_imagenet.py"
    assert data != run
    assert data.startswith("s3://")
    assert run.startswith("s3://")


def test_the_image_is_made_of_files_that_exist(aws: dict[str, Any]) -> None:
    text = DOCKERFILE.read_text()
    sources = [name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "soda_dist", "jobs"} <= set(sources)
    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert "--constraint constraints.txt" in text
    assert "Not built here" in text
    images = {aws["docker"]["image"], *re.findall(r"image: (\S+)", KUBERAY.read_text())}
    version = re.search(r'__version__ = "(.+)"', (ROOT / "soda_dist/__init__.py").read_text()).group(1)
    assert {image.rpartition("/")[2] for image in images} == {f"soda_dist:{version}"}


SECRET_SHAPE = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{40,}\b|\b[0-9A-Za-z+/]{40}\b")
SECRET_NAME = r"[\w.-]*(?:secret|token|password|access_key)\w*"
SECRET_VALUE = re.compile(rf"(?i)\b({SECRET_NAME}[\"']?\s*[:=]|name: {SECRET_NAME}, *value:)\s*[\"']?([^\s\"'#,{{}}]+)")
NO_SECRET = re.compile(r"~/\.ray/auth_token$|\$\(|token$")


def _secrets(text: str) -> list[str]:
    named = [value for _, value in SECRET_VALUE.findall(text) if not NO_SECRET.match(value)]
    return [*named, *SECRET_SHAPE.findall(text)]


def test_no_secret_is_written_down() -> None:
    found = {path.name: _secrets(path.read_text()) for path in (ROOT / "cluster").iterdir()}
    assert not any(found.values()), found
    for text in (
        "AWS_SECRET_ACCESS_KEY=abcdef",
        "RAY_AUTH_TOKEN: 5ecret",
        'password = "hunter2"',
        "- {name: AWS_SECRET_ACCESS_KEY, value: abc}",
        "key AKIAIOSFODNN7EXAMPLE",
    ):
        assert _secrets(text), text

"""The launch recipes: every command line is one that the program takes, and the numbers in each agree."""

import math
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from seq2seq_jax import command_line
from seq2seq_jax.config import check_config

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PROGRAM = re.compile(r"-m seq2seq_jax\.main((?:\\\n|[^\n`'])*)")
SHELL_WORDS = (">", "2>&1", "<", "|", "||", "&")
MANIFESTS = ("jobset.yaml", "jobset-gpu.yaml")


def find_commands():
    """`(where, arguments)` of every start of the program in the documents, the shell's own words cut off."""
    for path in sorted([DOCS / "launch.md", DOCS / "launch" / "slurm.sbatch"]):
        for match in PROGRAM.finditer(path.read_text(encoding="utf-8")):
            words = shlex.split(match[1].replace("\\\n", " "))
            end = next((n for n, word in enumerate(words) if word in SHELL_WORDS), len(words))
            yield f"{path.name}:{match.start()}", words[:end]
    for name in MANIFESTS:
        container = read_container(name)
        assert container["command"] == ["python", "-m", "seq2seq_jax.main"]
        yield name, container["args"]


def read_job(name):
    """The one replicated job of a manifest."""
    (jobset,) = yaml.safe_load_all((DOCS / "launch" / name).read_text(encoding="utf-8"))
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    (job,) = jobset["spec"]["replicatedJobs"]
    return jobset, job


def read_container(name):
    """Its one container."""
    (container,) = read_job(name)[1]["template"]["spec"]["template"]["spec"]["containers"]
    return container


def value_of(arguments, flag):
    """The value of `--flag=value`."""
    (value,) = [word.partition("=")[2] for word in arguments if word.startswith(f"--{flag}=")]
    return value


def fill_in(arguments):
    """What a shell or Kubernetes puts in the place of variables: some number or folder."""
    return [re.sub(r"\$\(\w+\)|\$\{?\w+\}?", "1", re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word)) for word in arguments]


COMMANDS = dict(find_commands())


def test_there_is_a_command_for_every_recipe():
    places = [where.partition(":")[0] for where in COMMANDS]
    assert places.count("launch.md") >= 3 and {"slurm.sbatch", *MANIFESTS} <= set(places)


@pytest.mark.parametrize("where", COMMANDS)
def test_every_command_is_one_that_the_program_takes(where, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = command_line.parse(["seq2seq_jax.main", *fill_in(COMMANDS[where])])
    check_config(given.config)
    assert (ROOT / value_of(COMMANDS[where], "config").partition(":")[0]).is_file()


def test_parsing_refuses_what_is_wrong(monkeypatch):
    """So that the test above can fail."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(Exception, match="no flag|no key"):
        command_line.parse(["seq2seq_jax.main", "--config=configs/gnmt.py", "--hostz=2"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_hosts_of_a_manifest_agree(name):
    job, container = read_job(name)[1], read_container(name)
    spec = job["template"]["spec"]
    hosts = spec["parallelism"] * job.get("replicas", 1)
    assert spec["completions"] == spec["parallelism"] and spec["completionMode"] == "Indexed"
    arguments = container["args"]
    limits = container["resources"]["limits"]
    (devices,) = [count for resource, count in limits.items() if resource in ("google.com/tpu", "nvidia.com/gpu")]
    assert int(value_of(arguments, "config.data.rows_multiple")) % (devices * hosts) == 0
    assert value_of(arguments, "workdir").startswith(container["volumeMounts"][0]["mountPath"])
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    selector = spec["template"]["spec"].get("nodeSelector", {})
    if topology := selector.get("cloud.google.com/gke-tpu-topology"):
        assert math.prod(map(int, topology.split("x"))) == devices * hosts
    else:  # nobody else tells these hosts who they are
        assert int(value_of(arguments, "hosts")) == hosts


def test_the_coordinator_is_a_pod_of_the_manifest():
    """JobSet's names: JOBSET-JOB-JOBINDEX-PODINDEX, below a service with the JobSet's name."""
    jobset, job = read_job("jobset-gpu.yaml")
    container = read_container("jobset-gpu.yaml")
    host, _, port = value_of(container["args"], "coordinator").partition(":")
    name = jobset["metadata"]["name"]
    assert host == f"{name}-{job['name']}-0-0.{name}"
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]
    (variable,) = container["env"]
    assert value_of(container["args"], "host") == f"$({variable['name']})"
    assert "job-completion-index" in variable["valueFrom"]["fieldRef"]["fieldPath"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_final_exit_codes_are_not_tried_again_and_143_is(name):
    jobset, job = read_job(name)
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
    assert rule["onExitCodes"]["values"] == [2, 3, 4]  # of seq2seq_jax.errors; 143 is a stop that goes on
    assert rule["onExitCodes"]["containerName"] == read_container(name)["name"]
    assert job["template"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # a podFailurePolicy needs it
    assert jobset["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"


def test_the_batch_script_is_bash_and_its_numbers_agree():
    path = DOCS / "launch" / "slurm.sbatch"
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # JAX under Slurm: one process a GPU
    gpus = int(options["nodes"]) * int(options["gpus-per-node"])
    (arguments,) = [words for where, words in COMMANDS.items() if where.startswith("slurm")]
    assert int(value_of(arguments, "config.data.rows_multiple")) % gpus == 0
    assert {"requeue", "signal"} <= set(options) and options["signal"].startswith("TERM@")


def test_the_chips_of_the_slices_divide_the_rows():
    """One recipe after the other: `--accelerator-type=v6e-CHIPS`, then the command for that slice."""
    text = (DOCS / "launch.md").read_text(encoding="utf-8")
    found = re.findall(r"--accelerator-type=v6e-(\d+)|rows_multiple=(\d+)", text)
    chips = [int(count) for count, _ in found if count]
    rows = [int(multiple) for _, multiple in found if multiple]
    assert len(chips) == 2 and len(rows) == 2
    assert all(multiple % count == 0 for multiple, count in zip(rows, chips, strict=True))


def test_files_that_the_page_names_are_there():
    text = (DOCS / "launch.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\((launch/[\w.-]+)\)", text) + re.findall(r"docs/(launch/[\w.-]+)", text)
    assert len(set(named)) >= 4
    assert not [name for name in named if not (DOCS / name).is_file()]
    for image in re.findall(r"EXTRA=(\w+)", text + (DOCS / "launch" / "Dockerfile").read_text(encoding="utf-8")):
        assert re.search(rf"^{image} = ", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE)

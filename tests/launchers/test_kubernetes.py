"""The shipped manifests against the schemas that Kubernetes, JobSet and Kubeflow Trainer publish."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models
from torch.distributed.run import parse_args

FOLDER = Path(__file__).parents[2] / "launchers" / "kubernetes"
OLDEST = "1.31"  # where podFailurePolicy is stable
KINDS: dict[str, Any] = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}


def manifests(name: str) -> dict[str, Any]:
    """By kind."""
    documents = yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


DOCUMENTS = [document for file in sorted(FOLDER.glob("*.yaml")) for document in manifests(file.name).values()]
CORE = [document for document in DOCUMENTS if document["kind"] not in KINDS]
CUSTOM = [document for document in DOCUMENTS if document["kind"] in KINDS]


def replicated(document: dict[str, Any]) -> dict[str, Any]:
    """The one Job that a JobSet or a runtime makes."""
    spec = document["spec"]
    jobs = (spec["template"]["spec"] if "template" in spec else spec)["replicatedJobs"]
    (job,) = jobs
    template: dict[str, Any] = job["template"]
    return template


JOBS = {
    "job": manifests("job.yaml")["Job"],
    "jobset": replicated(manifests("jobset.yaml")["JobSet"]),
    "trainjob": replicated(manifests("trainjob.yaml")["TrainingRuntime"]),
}


def refused(document: dict[str, Any]) -> bool:
    """Whether the schema of its kind has something against it; an unknown field is not read, so not written either."""
    if document["kind"] not in KINDS:
        try:
            kubernetes_validate.validate(document, OLDEST, strict=True)
        except kubernetes_validate.ValidationError:
            return True
        return False
    try:
        return bool(KINDS[document["kind"]].from_dict(copy.deepcopy(document)).to_dict() != document)
    except ValueError:
        return True


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("document", CORE, ids=lambda document: document["kind"])
def test_core_manifests_are_valid(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("document", CUSTOM, ids=lambda document: document["kind"])
def test_custom_manifests_are_valid(document: dict[str, Any]) -> None:
    assert KINDS[document["kind"]].from_dict(copy.deepcopy(document)).to_dict() == document


@pytest.mark.parametrize("name", JOBS)
def test_the_jobs_in_them_are_valid(name: str) -> None:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": JOBS[name]["spec"]}
    kubernetes_validate.validate(job, OLDEST, strict=True)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["kind"])
def test_the_schemas_refuse_what_is_misspelt_or_of_another_type(document: dict[str, Any]) -> None:
    assert not refused(document)
    assert refused(document | {"spec": document["spec"] | {"misspelt": 1}})
    assert refused(document | {"spec": "text"})


@pytest.mark.parametrize("name", JOBS)
def test_a_stop_is_no_failure_and_a_wrong_setting_is_a_final_one(name: str) -> None:
    rules = JOBS[name]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore", "FailJob"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert [rule["onExitCodes"]["values"] for rule in rules[1:]] == [[75], [2]]
    assert JOBS[name]["spec"]["template"]["spec"]["restartPolicy"] == "Never", "which podFailurePolicy asks for"


@pytest.mark.parametrize("name", JOBS)
def test_pods_run_as_nobody_in_particular_and_keep_what_they_save(name: str) -> None:
    pod = JOBS[name]["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "fsGroup": 10001}
    assert pod["terminationGracePeriodSeconds"] >= 300
    (container,) = pod["containers"]
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "runs": "/work",
        "shm": "/dev/shm",
    }
    assert {volume["name"] for volume in pod["volumes"]} == {"runs", "shm"}


@pytest.mark.parametrize(("name", "first"), [("job", "train-0.train"), ("jobset", "train-node-0-0.train")])
def test_torchrun_meets_at_the_first_pod(name: str, first: str) -> None:
    spec = JOBS[name]["spec"]
    found = parse_args(spec["template"]["spec"]["containers"][0]["args"])
    assert spec["completionMode"] == "Indexed"
    assert [found.nnodes] * 2 == [str(spec["parallelism"]), str(spec["completions"])]
    assert (found.rdzv_backend, found.rdzv_endpoint, found.max_restarts) == ("c10d", f"{first}:29500", 0)
    assert (found.module, found.training_script, found.training_script_args) == (
        True,
        "ciuic_dist.train",
        ["+model=llama"],
    )


def test_the_service_finds_the_pods_of_the_job() -> None:
    made = manifests("job.yaml")
    service, job = made["Service"], made["Job"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


def test_the_trainjob_runs_our_torchrun_in_the_container_that_its_runtime_has() -> None:
    made = manifests("trainjob.yaml")
    runtime, job = made["TrainingRuntime"], made["TrainJob"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["trainer"]["numNodes"] == runtime["spec"]["mlPolicy"]["numNodes"]
    labels = JOBS["trainjob"]["metadata"]["labels"]
    assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert JOBS["trainjob"]["spec"]["template"]["spec"]["containers"][0]["name"] == "node"
    trainer = job["spec"]["trainer"]
    assert trainer["command"] == ["python", "-m", "ciuic_dist.torchrun"]
    assert parse_args(trainer["args"]).training_script == "ciuic_dist.train"

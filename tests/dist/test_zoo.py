"""Our engine trains many architectures exactly as plain PyTorch does: losses and parameters, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from benchmarks.zoo import timm_models
from benchmarks.zoo.sweep import sweep
from benchmarks.zoo.verdict import Job, Verdict

DECODERS = "llama gemma2 gpt2 gptj gptneox opt bloom falcon phi olmo2 cohere minicpm3"
EXPERTS = "deepseekv2 deepseekv3 mixtral qwen3moe olmoe gptoss dbrx llama4"
RECURRENT = "mamba mamba2 jamba rwkv recurrentgemma zamba2"
ENCODERS = "albert bert deberta electra fnet funnel longformer modernbert squeezebert xlnet"
ENCODER_DECODERS = "t5 bart marian prophetnet nllbmoe switchtransformers"
VISION = "vit swin convnext resnet mobilenetv2 segformer levit"
OTHERS = "wav2vec2 whisper wavlm clip blip llava"
TRANSFORMERS = f"{DECODERS} {EXPERTS} {RECURRENT} {ENCODERS} {ENCODER_DECODERS} {VISION} {OTHERS}".split()
TIMM = ("test_convnext", "test_efficientnet", "test_nfnet", "test_resnet", "test_vit", "ghostnet_050")

# On three ranks sums of three terms depend on their order. None of these has a parameter whose gradient is rounding
# alone, as the biases of keys have: Adam makes steps of the learning rate from that.
THREE = ("llama", "deepseekv3", "albert", "t5", "resnet", "mamba")
THREE_TERMS = 1e-5

NO_TIMM = pytest.mark.skipif(
    not timm_models.installed(), reason="timm is not installed, see benchmarks/zoo/timm_models.py"
)


def jobs(names: Sequence[str], world: int) -> list[Job]:
    """Each architecture at each stage."""
    return [Job(name, "ours", stage, world) for name in names for stage in (1, 2, 3)]


def label(job: Job) -> str:
    return f"{job.name}-{job.stage}"


class Results:
    """Verdicts, made in the order of the tests that ask for them: one process group trains many architectures."""

    def __init__(self, wanted: Sequence[Job]) -> None:
        worlds = {job.world for job in wanted}
        self._sweeps = {world: sweep([job for job in wanted if job.world == world]) for world in worlds}
        self._known: dict[Job, Verdict] = {}

    def __getitem__(self, job: Job) -> Verdict:
        while job not in self._known:
            verdict = next(self._sweeps[job.world])
            self._known[verdict.job] = verdict
        return self._known[job]

    def close(self) -> None:
        for unfinished in self._sweeps.values():
            unfinished.close()


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    wanted = [test.callspec.params["job"] for test in tests if "results" in test.fixturenames]
    made = Results([job for job in wanted if isinstance(job, Job)])
    yield made
    made.close()


def explain(verdict: Verdict) -> str:
    return f"{verdict.status}: {verdict.error or verdict}"


@pytest.mark.parametrize("job", jobs(TRANSFORMERS, 2), ids=label)
def test_two_ranks_train_as_plain_pytorch_does(results: Results, job: Job) -> None:
    assert results[job].status == "identical", explain(results[job])


@NO_TIMM
@pytest.mark.parametrize("job", jobs(TIMM, 2), ids=label)
def test_timm_models_train_as_plain_pytorch_does(results: Results, job: Job) -> None:
    assert results[job].status == "identical", explain(results[job])


@pytest.mark.parametrize("job", jobs(THREE, 3), ids=label)
def test_three_ranks_train_as_plain_pytorch_does_but_for_rounding(results: Results, job: Job) -> None:
    assert results[job].within(THREE_TERMS), explain(results[job])


def test_the_zoo_has_forty_architectures_and_five_of_timm() -> None:
    assert len(set(TRANSFORMERS)) >= 40
    assert len(set(TIMM)) >= 5

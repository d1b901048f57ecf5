# CUDA:  docker build --tag ciuic_dist .
# CPU:   docker build --tag ciuic_dist --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
FROM python:3.12-slim-bookworm
# Where torch comes from. PyPI's has its CUDA libraries with it, so that a node needs only the driver.
ARG TORCH_INDEX=https://pypi.org/simple

RUN useradd --create-home --uid 10001 trainer \
 && install --directory --owner=trainer /work

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ciuic_dist ciuic_dist
# torch comes first: everything after it then finds a torch and pulls no other build.
RUN pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" --constraint constraints.txt torch \
 && pip install --no-cache-dir --constraint constraints.txt '.[train]'

USER 10001
WORKDIR /work
# torchrun that leaves with its ranks' exit code and gives them the time to save that the container has.
ENTRYPOINT ["python", "-m", "ciuic_dist.torchrun"]
CMD ["--standalone", "--nproc-per-node", "auto", "-m", "ciuic_dist.train", "+model=deepseek"]

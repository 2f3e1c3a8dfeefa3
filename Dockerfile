# Training and inference on the CPU: `docker build -t dcnzoo .`, then
#   docker run --rm dcnzoo
#   docker run --rm --shm-size 2g -v "$PWD:/workspace" dcnzoo train CONFIG
# The first runs `dcnzoo doctor`. Files that the second writes belong to user 1000.
# --build-arg BASE=python:3.11-slim-bookworm@sha256:… pins the base image to one build.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv==0.13.9
# uv knows where torch's CPU builds are; the one on PyPI is for CUDA, 3 GB.
# An image is read-only: nothing could keep the bytecode that Python writes at the first import.
ENV UV_TORCH_BACKEND=cpu UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 VIRTUAL_ENV=/opt/dcnzoo
RUN uv venv --python "$(command -v python)" "$VIRTUAL_ENV"
WORKDIR /build
# The packages before the sources, so that a change of the sources does not install them again.
COPY pyproject.toml ./
COPY .ci/opencv-python .ci/opencv-python
RUN uv pip install --group train \
    && uv pip install --no-deps --group openmmlab \
    && uv pip install --no-deps --no-build-isolation ./.ci/opencv-python
COPY setup.py MANIFEST.in README.md LICENSE model-index.yml ./
COPY ops ops
COPY configs configs
COPY tools tools
COPY dcnzoo dcnzoo
RUN DCNZOO_CUDA=0 uv pip install --no-deps --no-build-isolation .

FROM ${BASE}
COPY --from=build /opt/dcnzoo /opt/dcnzoo
ENV PATH=/opt/dcnzoo/bin:$PATH
RUN useradd --create-home --uid 1000 dcnzoo \
    && install --directory --owner=dcnzoo /workspace
USER 1000
WORKDIR /workspace
ENTRYPOINT ["dcnzoo"]
CMD ["doctor"]

# syntax=docker/dockerfile:1
# The worker's image: `python -m handler` with torch for CUDA, as RunPod serverless starts it (docs/runpod.md).
#
#   docker build --platform linux/amd64 -t YOU/imgen-worker:VERSION .
#
# MODELS       a file of deploy/models whose hub models are baked into the image, such as deploy/models/sdxl.toml;
#              without it they come from RunPod's model cache, a network volume or, the slowest way, the hub
# TORCH_INDEX  a wheel index for another CUDA than that of PyPI's torch (13.0 for torch 2.13), such as
#              https://download.pytorch.org/whl/cu126 for hosts with an older driver

FROM python:3.11-slim-bookworm AS packages
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /build
RUN python -m venv /opt/venv
COPY constraints.txt ./
# torch first and alone: it brings CUDA's libraries, pinned by itself, and is by far the largest and steadiest layer.
# torchvision, the build that belongs to it, is what some processors of pictures want (Qwen-Image-Edit's).
RUN /opt/venv/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)" \
    "$(grep '^torchvision==' constraints.txt)"
COPY pyproject.toml ./
# What imgen[worker] names, without imgen itself, so that a change of the code installs nothing again.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['worker'], sep='\n')" > worker.txt \
    && /opt/venv/bin/pip install -c constraints.txt -r worker.txt

FROM packages AS weights
ARG MODELS=""
WORKDIR /opt/imgen
# Only what the download needs, so that a change of the rest of the code downloads nothing again.
COPY deploy/models deploy/models
COPY handler/__init__.py handler/contract.py handler/drawing.py handler/families.py handler/log.py handler/lora_files.py handler/models.py handler/pull.py handler/
# A gated model needs a token: docker build --secret id=HF_TOKEN,env=HF_TOKEN
RUN --mount=type=secret,id=HF_TOKEN,env=HF_TOKEN \
    mkdir huggingface && if [ -n "$MODELS" ]; then HF_HOME=/opt/imgen/huggingface /opt/venv/bin/python -m handler.pull "$MODELS"; fi

FROM python:3.11-slim-bookworm
# Triton, which torch.compile uses, builds a launcher for every kernel with a compiler, at run time.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=packages /opt/venv /opt/venv
WORKDIR /opt/imgen
COPY --from=weights /opt/imgen/huggingface huggingface
ARG MODELS=""
ARG BAKED=${MODELS:+/opt/imgen/huggingface}
# RunPod mounts its model cache and network volumes at /runpod-volume; where there is neither, it is on the container's disk.
# The NVIDIA variables are what a CUDA base image would set: without them some hosts give a container no GPU.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/imgen \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HOME=${BAKED:-/runpod-volume/huggingface-cache} \
    HF_HUB_OFFLINE=${MODELS:+1} \
    IMGEN_MODELS=${MODELS:+/opt/imgen/$MODELS} \
    IMGEN_REQUIRE_GPU=true \
    IMGEN_MIN_DISK_GB=1
COPY deploy/models deploy/models
COPY test_input.json ./
COPY handler handler
RUN python -m compileall -q handler
# It runs as root, because a network volume belongs to root and the worker keeps models and compiled kernels on it; it
# listens to no port. No shell around python: as process 1 it gets RunPod's SIGTERM itself.
CMD ["python", "-m", "handler"]

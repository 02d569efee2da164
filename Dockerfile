# An image with the command `loraprune`. By default it holds the PyTorch that pip's own index serves: the CUDA build, which also runs on CPUs.
#   docker build -t loraprune .
# Much smaller, for CPUs alone: name PyTorch's index of CPU builds.
#   docker build -t loraprune:cpu --build-arg PIP_EXTRA_INDEX_URL="$TORCH_CPU_INDEX" .
# docs/get-started.md shows how to run it.

ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

ARG PIP_EXTRA_INDEX_URL=
ARG EXTRAS=evaluation,gguf,onnx,quantization

# PyTorch first, in a layer of its own: it is large, and a change of the source does not touch it.
WORKDIR /opt/loraprune
COPY constraints.txt constraints-dev.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch

COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

# Any user may run it (docker run --user), so that files in a mounted folder belong to whoever started it.
RUN mkdir -p /cache /work && chmod 1777 /cache /work
ENV HOME=/cache \
    HF_HOME=/cache/huggingface \
    USER=loraprune \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /work

# exec form: SIGTERM of `docker stop` reaches the run, which saves its state
ENTRYPOINT ["loraprune"]
CMD ["--help"]

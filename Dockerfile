# An image with the command `loraprune`, for CPUs:
#   docker build -t loraprune .
# for NVIDIA GPUs (the package index itself serves PyTorch's CUDA build):
#   docker build -t loraprune:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
# docs/get-started.md shows how to run it.

ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=evaluation,gguf,onnx,quantization

# PyTorch first, in a layer of its own: it is large, and a change of the source does not touch it.
WORKDIR /opt/loraprune
COPY constraints.txt constraints-dev.txt ./
RUN pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" -c constraints.txt torch

COPY pyproject.toml README.md LICENSE MANIFEST.in ./
COPY src ./src
RUN pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" -c constraints.txt ".[${EXTRAS}]"

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

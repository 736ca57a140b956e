# The OpenAI-compatible server in a container, for a CPU (the default) or an NVIDIA GPU. docs/serving.md has the commands.
#   CPU:  docker build -t llava .
#   CUDA: docker build -t llava:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 --build-arg TORCH_INDEX=https://pypi.org/simple .
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# CUDA's image has no Python; the other one brings its own
RUN if ! command -v python3 >/dev/null; then \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; \
    fi && python3 -m venv /opt/llava
ENV PATH=/opt/llava/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# torch alone first: it is the largest part, and changes least
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY llava ./llava
RUN pip install --no-cache-dir -c constraints.txt ".[serve]"

FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN if ! command -v python3 >/dev/null; then \
        apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*; \
    fi && groupadd --gid 10001 llava && useradd --uid 10001 --gid llava --create-home llava
COPY --from=build /opt/llava /opt/llava
ENV PATH=/opt/llava/bin:$PATH PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2
USER 10001:10001
WORKDIR /home/llava
EXPOSE 8000
# the key guards /health as well
HEALTHCHECK --interval=15s --timeout=10s --start-period=10m --retries=3 CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:8000/health', headers={'Authorization': 'Bearer ' + os.environ['LLAVA_API_KEY']}), timeout=5)"]
# the key comes at run time (-e LLAVA_API_KEY); without one the program does not start on this address
ENTRYPOINT ["python", "-m", "llava.serve.openai_api", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--model-path", "/model"]

# syntax=docker/dockerfile:1
# docker build --target cpu -t deepseek-serve .        docker build --target gpu -t deepseek-serve:gpu .

FROM python:3.12-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY kernels kernels
COPY engine engine
COPY server server

FROM build AS build-cpu
# The CPU wheels of torch are an eighth of the default ones.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --index-url "$TORCH_INDEX" 'torch>=2.8,<3' \
    && pip install . \
    && XDG_CACHE_HOME=/cache python -c 'from engine.loading.default_model import fetch; fetch()'

FROM build AS build-gpu
RUN pip install . \
    && XDG_CACHE_HOME=/cache python -c 'from engine.loading.default_model import fetch; fetch()'

FROM python:3.12-slim-bookworm AS runtime
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 serve
ENV PATH=/venv/bin:$PATH XDG_CACHE_HOME=/cache PYTHONUNBUFFERED=1 DEEPSEEK_SERVE_HOST=0.0.0.0
USER 10001
WORKDIR /home/serve
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('DEEPSEEK_SERVE_PORT', '8000') + '/health', timeout=2)"]
ENTRYPOINT ["deepseek-serve"]

FROM runtime AS gpu
COPY --from=build-gpu /venv /venv
COPY --from=build-gpu --chown=10001 /cache /cache

# Last, so that a plain `docker build .` makes it.
FROM runtime AS cpu
COPY --from=build-cpu /venv /venv
COPY --from=build-cpu --chown=10001 /cache /cache

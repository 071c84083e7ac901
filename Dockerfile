# docker build -t deepseek-serve .        docker build --target gpu -t deepseek-serve:gpu .
# With a package index of your own: --secret id=pip,src=pip.conf (and --build-arg TORCH_INDEX=...).

ARG BASE=python:3.11-slim-trixie

# What the running image and the build have in common.
FROM ${BASE} AS system
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
ENV PATH=/venv/bin:$PATH

FROM system AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008,DL3009
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && python3 -m venv /venv
WORKDIR /src

FROM build AS model
COPY engine/__init__.py engine/errors.py engine/logs.py engine/
COPY engine/loading/__init__.py engine/loading/default_model.py engine/loading/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    XDG_CACHE_HOME=/cache python -c 'from engine.loading.default_model import fetch; fetch()'

# The package alone, with its native kernels: a small layer, and the same for both targets.
FROM build AS package
COPY pyproject.toml hatch_build.py ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" \
        > requirements.txt \
    && pip install --requirement requirements.txt
COPY kernels kernels
RUN python kernels/native/build.py
COPY README.md LICENSE ./
COPY engine engine
COPY server server
RUN pip install --no-deps --no-build-isolation --prefix /package . \
    && rm /package/bin/deepseek-train # the image serves; training/ is not in it

FROM build AS dependencies
COPY pyproject.toml deploy/image/sbom.py deploy/image/prune.py ./
COPY --from=system /var/lib/dpkg /system/dpkg
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['otel'], sep='\n')" \
        > requirements.txt \
    && grep ^torch requirements.txt > torch.txt \
    && python3 -m venv /tools && /tools/bin/pip install 'cyclonedx-bom>=7,<8'

FROM dependencies AS dependencies-cpu
# The CPU wheels of torch are an eighth of the default ones.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --index-url "$TORCH_INDEX" --requirement torch.txt \
    && pip install --requirement requirements.txt \
    && /usr/local/bin/python3 prune.py /venv/lib/python3*/site-packages

FROM dependencies AS dependencies-gpu
RUN --mount=type=secret,id=pip,target=/etc/pip.conf pip install --requirement requirements.txt

FROM dependencies-cpu AS sbom-cpu
COPY --from=package /package /venv
RUN /tools/bin/python sbom.py /venv /system/dpkg > /sbom.json

FROM dependencies-gpu AS sbom-gpu
COPY --from=package /package /venv
RUN /tools/bin/python sbom.py /venv /system/dpkg > /sbom.json

FROM system AS runtime
# /cache holds the default model and stays as it is; what is fetched from the hub goes to the volume at /models.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp serve && install --directory --owner=serve /models
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 XDG_CACHE_HOME=/cache HF_HOME=/models/huggingface \
    DEEPSEEK_SERVE_HOST=0.0.0.0 DEEPSEEK_SERVE_DRAIN_TIMEOUT=30
COPY --from=model /cache /cache
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG BASE
LABEL org.opencontainers.image.title="deepseek-serve" \
      org.opencontainers.image.description="OpenAI-compatible inference server for DeepSeek-style language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="$BASE"
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request; s = 's' if 'DEEPSEEK_SERVE_TLS_CERT' in os.environ else ''; urllib.request.urlopen('http' + s + '://127.0.0.1:' + os.environ.get('DEEPSEEK_SERVE_PORT', '8000') + '/readyz', timeout=2, context=ssl._create_unverified_context() if s else None)"]
ENTRYPOINT ["tini", "--", "deepseek-serve"]

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=dependencies-gpu /venv /venv
COPY --from=package /package /venv
COPY --from=sbom-gpu /sbom.json /usr/share/sbom/deepseek-serve.cdx.json

# Last, so that a plain `docker build .` makes it.
FROM runtime AS cpu
COPY --from=dependencies-cpu /venv /venv
COPY --from=package /package /venv
COPY --from=sbom-cpu /sbom.json /usr/share/sbom/deepseek-serve.cdx.json

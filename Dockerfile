# Saccade's image: make docker, or docker build --build-arg DEVICE=cuda --tag saccade:cuda .
#
# DEVICE       cpu, or cuda, which adds what Triton needs to compile its kernels. The CUDA libraries
#              come with torch, the driver from the host: docker run --gpus all.
# EXTRAS       extras of saccade-server, with commas between: otel is small, ray is not.
# TORCH_INDEX  one more package index to look for torch in, for a build other than pip's default.
#              On Linux that default is a CUDA build: it serves on a CPU too, but is much larger.

FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
# pip has an environment of its own: what serves cannot install.
RUN python3 -m venv /tools && python3 -m venv --without-pip /srv/saccade
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/source/constraints.txt
WORKDIR /source
# PyTorch first, from the pins alone: an edit of pyproject.toml keeps this large layer. Its tests,
# its programs for developers and the headers of its C++ interface are of no use to a server.
COPY constraints.txt ./
ARG TORCH_INDEX=
RUN /tools/bin/pip install setuptools \
    && /tools/bin/pip --python /srv/saccade/bin/python install \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch \
    && cd /srv/saccade/lib/python3*/site-packages/torch \
    && rm -rf test include share/cmake \
    && find bin -type f ! -name torch_shm_manager -delete
# Then all else that Saccade needs, and only then its sources: an edit of them leaves everything
# above as it is, in a registry too.
COPY pyproject.toml ./
ARG EXTRAS=otel
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = filter(None, '$EXTRAS'.split(',')); \
print(*project['dependencies'], *(need for extra in extras \
    for need in project['optional-dependencies'][extra]), sep='\n')" > needed.txt \
    && /tools/bin/pip --python /srv/saccade/bin/python install --requirement needed.txt
COPY LICENSE README.md ./
COPY kernels kernels
COPY interventions interventions
COPY server server
RUN /tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /tools/bin/pip --python /srv/saccade/bin/python install --no-deps --prefix /srv/app /wheels/*.whl

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title=Saccade \
      org.opencontainers.image.licenses=Apache-2.0
ARG DEVICE=cpu
RUN case "$DEVICE" in \
        cpu) compiler= ;; \
        cuda) compiler="gcc libc6-dev python3-dev" ;; \
        *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac \
    && apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 $compiler \
    && rm -rf /var/lib/apt/lists/*
# Any UID will do as long as its group is 0: clusters that choose the UID choose it so. Models,
# compiled kernels and uploaded artifacts live on one volume, so a restart neither downloads nor
# compiles again, and loses nothing; everything else may be mounted read-only, given a /tmp. Folders
# that get a volume of their own are here, because an empty volume takes their owner.
RUN useradd --uid 2000 --gid 0 --no-create-home --home-dir /cache saccade \
    && mkdir -p /cache/huggingface /cache/artifacts /cache/traces \
    && chown -R 2000:0 /cache && chmod -R 2775 /cache
COPY --from=build /srv/saccade /srv/saccade
COPY --from=build /srv/app /srv/app
# What is in here, as CycloneDX; the script stays for images that are made from this one.
COPY scripts/sbom.py /srv/sbom/
RUN echo /srv/app/lib/python3*/site-packages > "$(echo /srv/saccade/lib/python3*/site-packages)/app.pth" \
    && /srv/saccade/bin/python /srv/sbom/sbom.py saccade-server > /srv/sbom/saccade.cdx.json
# The address is no part of the command: one of your own (serve --model ...) listens there too.
ENV PATH=/srv/app/bin:/srv/saccade/bin:$PATH \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    SACCADE_ARTIFACTS=/cache/artifacts \
    SACCADE_TRACES=/cache/traces \
    SACCADE_HOST=0.0.0.0 \
    SACCADE_PORT=8000 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
USER 2000:0
WORKDIR /cache
VOLUME /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
# /live, not /ready: a server that drains or is full must not be restarted for it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:%s/live' % os.environ['SACCADE_PORT'], timeout=4)"]
ENTRYPOINT ["saccade"]
CMD ["serve"]

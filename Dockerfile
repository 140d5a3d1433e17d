# One image for every role: ranks, planning on a login node, evaluation, prediction. docs/containers.md tells how to
# build and run it.
ARG BASE=debian:bookworm-slim

# What every role needs of the system: Python, the faster malloc, an MPI and ssh to start ranks on other hosts.
FROM ${BASE} AS system
# Debian's stable release keeps its versions and mends only faults: a pinned one would soon be gone from the archive.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      libgomp1 libtcmalloc-minimal4 openmpi-bin openssh-client python3 tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /var/log/apt /var/log/dpkg.log
ENV PATH=/opt/distrib/bin:$PATH

# Libraries, and the oneCCL backend compiled for them: rebuilt only when they change.
FROM system AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
# Where pip finds wheels, for sites that have a mirror or a folder of them, and for torch's CPU wheels.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
WORKDIR /src
COPY constraints.txt pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > /tmp/requirements.txt \
 && python3 -m venv /opt/distrib \
 && pip install --no-cache-dir --no-compile --constraint constraints.txt --requirement /tmp/requirements.txt setuptools \
 && python -c 'import sys, torch; torch.version.cuda is None or sys.exit("error: pip found a torch for GPUs, five times \
as large. The image was not built. Name an index or a folder of CPU wheels: docs/containers.md, Building.")'
COPY distrib/__init__.py distrib/errors.py distrib/
COPY distrib/comm/__init__.py distrib/comm/building.py distrib/comm/oneccl_build.py distrib/comm/oneccl.cpp \
     distrib/comm/peer_watch.hpp distrib/comm/
# What only compilers and the libraries' own tests use is left out: 250 MB. The rest is byte-compiled, for nobody may later.
RUN XDG_CACHE_HOME=/opt/distrib/share python -c 'from distrib.comm.oneccl_build import build; build(print)' \
 && find /opt/distrib/lib -type d '(' -path '*/torch/include' -o -path '*/torch/test' -o -name tests ')' -prune -exec rm -r {} + \
 && find /opt/distrib/lib -path '*/torch/bin/*' -type f ! -name torch_shm_manager -delete \
 && python -m compileall -q -j 0 -x '/py3[0-9]+_' /opt/distrib/lib

FROM build AS project
COPY README.md ./
COPY distrib distrib
COPY launch launch
RUN pip install --no-cache-dir --no-deps --no-build-isolation --prefix /made .

FROM system
COPY --from=build /opt/distrib /opt/distrib
COPY --from=project /made /opt/distrib
COPY cluster_configs/container.yaml /etc/distrib/container.yaml
# For ranks that mpirun or srun starts, without `launch` to choose the malloc.
ENV LD_PRELOAD=libtcmalloc_minimal.so.4
RUN useradd --uid 1000 --create-home distrib
USER 1000:1000
WORKDIR /work
# Any command, unchanged. tini passes signals on and reaps orphans, also where it is not process 1.
ENTRYPOINT ["tini", "-s", "--"]
CMD ["distrib", "--help"]

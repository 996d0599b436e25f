# CUDA runtime base; torch's own wheels bring their CUDA libraries, the base brings the driver's user-space side.
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PATH=/opt/venv/bin:$PATH
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv git rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --create-home --uid 10001 sweep \
    # Login shells, which KubeRay starts Ray in, set PATH anew.
    && echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/venv.sh

WORKDIR /app
# The code and its exact dependencies.
COPY pyproject.toml constraints.txt LICENSE README.md launch.py ./
COPY circuits ./circuits
COPY sweeps ./sweeps
COPY conf ./conf
RUN pip install -c constraints.txt -e . && mkdir runs && chown -R sweep:sweep /app

USER sweep
# Runs go to /app/runs: mount a volume there to keep them.
VOLUME ["/app/runs"]
ENTRYPOINT ["python", "launch.py"]

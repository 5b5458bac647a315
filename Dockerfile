# The image holds a virtual environment and nothing else: no compiler, no pip cache, no tests.
# It runs on a read-only file system:  docker run --read-only -p 8000:8000 galecast

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/build && python -m venv --without-pip /opt/galecast
COPY requirements.lock requirements-build.lock ./
RUN /opt/build/bin/pip install --require-hashes --no-deps -r requirements-build.lock \
    && /opt/build/bin/pip --python /opt/galecast/bin/python install --no-compile --require-hashes --no-deps --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY pubsub pubsub
COPY server server
COPY handlers handlers
COPY static static
# Nothing can be compiled on a read-only file system: it is done here, once.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /tmp/wheel . \
    && /opt/build/bin/pip --python /opt/galecast/bin/python install --no-deps --no-index /tmp/wheel/*.whl \
    && /opt/galecast/bin/python -m compileall -q /opt/galecast/lib

FROM python:3.13-slim
COPY --from=build /opt/galecast /opt/galecast
# 0.0.0.0 is the container's own network; what is published outside is docker's -p.
ENV GALECAST_HOST=0.0.0.0 \
    PATH=/opt/galecast/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('GALECAST_PORT', '8000') + '/healthz', timeout=2)"]
ENTRYPOINT ["galecast"]
CMD ["serve"]

ARG PYTHON=3.13
# azure: with what PROXY_UPSTREAM_AUTH=entra takes
ARG REQUIREMENTS=run

# The workshop: what is downloaded is checked against the hashes in requirements/. Nothing here stays but /opt/oxy.
FROM python:${PYTHON}-slim AS workshop
ARG REQUIREMENTS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements/build.txt requirements/${REQUIREMENTS}.txt requirements/
RUN python -m venv --without-pip /opt/oxy \
    && python -m pip --python /opt/oxy/bin/python install --require-hashes -r requirements/${REQUIREMENTS}.txt \
    && python -m pip install --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY proxy proxy
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m pip --python /opt/oxy/bin/python install --no-deps --no-index /wheels/*.whl

FROM python:${PYTHON}-slim
ENV PATH=/opt/oxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
COPY --from=workshop /opt/oxy /opt/oxy
# A new volume takes over the owner of the folder that it covers.
RUN install -d -o 10001 -g 10001 -m 700 /var/lib/oxy
VOLUME /var/lib/oxy
WORKDIR /app
# A number, so that an orchestrator can see that it is not root. Only /tmp and /var/lib/oxy (the history, if
# PROXY_HISTORY names a file there) are written to; /app may hold a mounted .env.
USER 10001:10001
EXPOSE 18443
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s CMD ["python", "-I", "-c", "\
import http.client, os, sys; \
probe = http.client.HTTPConnection('127.0.0.1', int(os.getenv('OXY_PORT') or 18443), timeout=4); \
probe.request('GET', '/health'); \
sys.exit(probe.getresponse().status != 200)"]
# Exec form: oxy is process 1 and gets SIGTERM itself.
ENTRYPOINT ["oxy"]

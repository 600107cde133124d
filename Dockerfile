# The image of worker, beat, Flower, metrics and sandbox; see docs/deploy.md.
FROM python:3.12-slim-bookworm AS build

WORKDIR /src
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY batchpipe ./batchpipe
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt /wheels/*.whl

FROM python:3.12-slim-bookworm

# The user of the image owns ./data of the host, if it has the same number.
ARG UID=1000
RUN useradd --no-create-home --home-dir /state --uid "$UID" batchpipe \
    && install -d -m 700 -o batchpipe -g batchpipe /state \
    && install -d -o batchpipe -g batchpipe /data /sandbox \
    && install -d /app
COPY --from=build /opt/venv /opt/venv

USER batchpipe
# Not where data lie: whoever may put an input there must not give settings or code. So no .env is read here, and Python looks
# for modules in no current folder; what belongs to an image made from this one goes into /app, and PYTHONPATH=/app.
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    BATCHPIPE_ENV_FILE= \
    BATCHPIPE_HOME=/state
CMD ["batchpipe", "worker"]

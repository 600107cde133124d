FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY batchpipe ./batchpipe
RUN pip install --no-cache-dir -c constraints.txt . \
    && useradd --create-home --uid 1000 batchpipe \
    && install -d -o batchpipe -g batchpipe /data

USER batchpipe
WORKDIR /data
ENV PYTHONUNBUFFERED=1
CMD ["batchpipe", "worker"]

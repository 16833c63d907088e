# The tool on a CPU. Photos and runs are brought by a volume:
#   docker build -t proxylessnas .
#   docker run --rm -v "$PWD:/data" proxylessnas run --data photos --pretrained efficientnet_lite0 --target-latency 0.6x
FROM python:3.12-slim

# The build of torch without CUDA: a tenth of the size. The versions are those that pyproject.toml allows.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[pretrained]' \
    # Nobody needs to be root to train a network.
    && useradd --create-home --uid 1000 user

USER 1000
WORKDIR /data
ENTRYPOINT ["proxylessnas"]
CMD ["--help"]

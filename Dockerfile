# The gateway itself. It needs the Docker socket, and NVML from the NVIDIA container toolkit (`--gpus all`, utility).
ARG PYTHON=python:3.12.12-slim-bookworm
FROM $PYTHON AS build
WORKDIR /src
# The versions that the tests ran with, by their hashes: `make lock` writes them.
COPY deploy/image/*.lock ./
RUN pip install --no-cache-dir --require-hashes -r build.lock \
    && pip install --no-cache-dir --prefix=/install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
COPY strategies ./strategies
RUN pip install --no-cache-dir --prefix=/install --no-deps --no-build-isolation .

FROM $PYTHON
COPY --from=build /install /usr/local
COPY deploy/image/start /usr/local/bin/start-vllm-gateway
RUN useradd --uid 10001 --home-dir /state --create-home gateway
ENV HOME=/state VLLM_GATEWAY_STATE_DIR=/state MEMORY_FOOTPRINT_FILE=/state/footprints.json \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=utility
WORKDIR /state
EXPOSE 8000
STOPSIGNAL SIGTERM
# It begins as root to learn which group may use the Docker socket, and goes on as `gateway` of that group.
ENTRYPOINT ["start-vllm-gateway"]
# Every address of the container: without VLLM_GATEWAY_API_KEYS (or server.api_keys) it does not start, unless it is told
# that all who reach it are to be served (VLLM_GATEWAY_OPEN=true), as in compose.yaml.
CMD ["serve", "--config", "/config/gateway.yaml", "--host", "0.0.0.0"]

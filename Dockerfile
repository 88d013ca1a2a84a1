# The gateway itself. It needs the Docker socket, and NVML from the NVIDIA container toolkit (`--gpus all`, utility).
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
COPY strategies ./strategies
RUN pip install --no-cache-dir --prefix=/install .

FROM python:3.12-slim
COPY --from=build /install /usr/local
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=utility
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["vllm-gateway"]
# Every address of the container: without VLLM_GATEWAY_API_KEYS (or server.api_keys) it does not start, unless it is told
# that all who reach it are to be served (VLLM_GATEWAY_OPEN=true), as in compose.yaml.
CMD ["serve", "--config", "/config/gateway.yaml", "--host", "0.0.0.0"]

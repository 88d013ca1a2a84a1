# SPDX-License-Identifier: Apache-2.0
# The simulated engine as an image that is started as vLLM's is: arguments after the entry point, port 8000.
ARG BASE
FROM ${BASE}
# Compiles what the engine imports, once: else every container does at its start.
RUN ["python3", "-c", "import argparse, asyncio, dataclasses, http, json, logging, pathlib, tempfile, urllib.request"]
ENV PYTHONPATH=/app
EXPOSE 8000
ENTRYPOINT ["python3", "-m", "vllm_gateway.simulator"]
COPY vllm_gateway /app/vllm_gateway

# SPDX-License-Identifier: Apache-2.0
"""The secrets that the settings hold: none of them is to be seen in any text."""

from vllm_gateway.configuration.api_keys import secret_of
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.telemetry.secrets import Secrets


def learn_settings(secrets: Secrets, settings: Settings) -> None:
    secrets.learn([settings.hf_token, *map(secret_of, settings.server.api_keys)])
    secrets.learn_arguments(settings.process.command)
    for model in settings.models.values():
        secrets.learn_environment(model.environment)
        secrets.learn_arguments(model.engine_arguments)

# SPDX-License-Identifier: Apache-2.0
"""Faults that befall the gateway itself, and changes of its configuration."""

from tests.faults import reloads, strikes
from tests.faults.faults import Fault, Side, Stage
from tests.faults.matrix.rows import always, row
from tests.faults.outcomes import COMPLETED, CUT, CUT_AND_ADOPTED, UNDISTURBED, answered, error, perhaps, refused
from tests.faults.scene import Scene

_REFUSED = refused("stopping", "finished, or refused")
_STOPPING = error("stopping", "503 `stopping`")
_SAYS_GOODBYE = error("stopping", "an error event `stopping`")
_GONE = error("model_not_found", "404 `model_not_found`: it is no longer served")
_OR_GONE = perhaps("model_not_found", "finished, or 404 `model_not_found`")
_FINISHED = answered("finished before the gateway ends")

FAULTS = (
    Fault(
        "gateway-sigterm",
        "is told to end (SIGTERM)",
        Side.GATEWAY,
        strikes.gateway_is_told_to_end,
        row(_FINISHED, _REFUSED, _FINISHED, _FINISHED, _FINISHED),
        stage=Stage.ALONE,
        afterwards=Scene.gateway_ended,
    ),
    Fault(
        "gateway-drain",
        "is told to end, and requests take longer than `server.drain_timeout_s`",
        Side.GATEWAY,
        strikes.gateway_is_told_to_end,
        row(_STOPPING, _REFUSED, _STOPPING, _SAYS_GOODBYE, COMPLETED),
        stage=Stage.ALONE,
        settings={"server": {"drain_timeout_s": 0.5}},
        stays_held=True,
        afterwards=Scene.gateway_ended,
    ),
    Fault(
        "gateway-take-over",
        "gives over to a new one (`--take-over`); requests end within `server.drain_timeout_s`; engines in containers",
        Side.GATEWAY,
        strikes.gateway_gives_over,
        always(UNDISTURBED),
        stage=Stage.DOCKER_ALONE,
        afterwards=Scene.gateway_died,
    ),
    Fault(
        "gateway-sigkill",
        "is killed (SIGKILL)",
        Side.GATEWAY,
        strikes.gateway_dies,
        always(CUT),
        stage=Stage.ALONE,
        afterwards=Scene.gateway_ended,
    ),
    Fault(
        "gateway-sigkill-docker",
        "is killed; engines in containers",
        Side.GATEWAY,
        strikes.gateway_dies,
        always(CUT_AND_ADOPTED),
        stage=Stage.DOCKER_ALONE,
        afterwards=Scene.gateway_died,
    ),
    Fault(
        "model-changes",
        "reads a configuration in which the model is another",
        Side.GATEWAY,
        reloads.model_is_another,
        always(UNDISTURBED),
        costs_engine=True,
        afterwards=reloads.instances_were_replaced,
    ),
    Fault(
        "model-added",
        "reads a configuration with one more model",
        Side.GATEWAY,
        reloads.model_is_new,
        always(UNDISTURBED),
        afterwards=reloads.new_one_is_served,
    ),
    Fault(
        "model-removed",
        "reads a configuration without the model",
        Side.GATEWAY,
        reloads.model_is_gone,
        row(_GONE, _OR_GONE, UNDISTURBED, UNDISTURBED, UNDISTURBED),
        afterwards=reloads.model_is_back,
    ),
    Fault(
        "bad-configuration",
        "reads a configuration that is wrong",
        Side.GATEWAY,
        reloads.is_wrong,
        always(UNDISTURBED),
    ),
)
